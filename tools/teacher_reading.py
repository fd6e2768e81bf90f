"""Whether a policy, as its own teacher, reads evidence, before any reinforcement learning.

    python -m tools.teacher_reading embedded:tiny_alfworld --states 200

On held-out ALFWorld games a searcher plays up to a random step. There a planner with full knowledge says
which action is better (the first of a plan) and which admissible ones are worse (they bring the task no
nearer); others are inadmissible. Of the worse and of the inadmissible ones, the one is taken that the policy
itself finds likeliest: what it would try. The three are scored with and without evidence, through the sources
and contexts of training:

- feedback: the environment's answer to the better, the worse or the inadmissible action
- successful sample: the planner's solution of the game

A teacher that reads has a positive difference for the better action and a negative one for the others. The
second difference is a mean weighted by how likely the policy is to try the action of the evidence (or, for a
success, the scored one): what training sees, where an action that is never tried is never weighted.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from envs.alfworld.demonstrator import imagined_actions
from envs.alfworld.engine import Engine
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.oracle import NoPlanError, Searcher, plan, steps_left
from envs.alfworld.provider import AlfworldProvider, make_provider
from envs.base import Task
from serl.config import HindsightSection
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import render_context
from serl.hindsight.evidence import GroupView
from serl.models.resolve import ModelPathError, resolve_model
from serl.rollout.actions import action_token_mask
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from serl.rollout.told_prompt import with_context
from serl.run.surroundings import write_any_character
from serl.types import Step, Trajectory
from tools.arguments import output_file
from tools.report.statistics import mean_interval, weighted_mean_interval
from tools.warm_start.demonstrations import response_text

_BATCH_SIZE = 64
_NOISE = 0.2
_FEEDBACK = HindsightSection(sources=("immediate_feedback",))
_SUCCESS = HindsightSection(sources=("successful_sample",))
# The action that evidence is about, which evidence, and the action that is scored.
_LINES = (
    ("better", _FEEDBACK, "better"),
    ("worse", _FEEDBACK, "better"),
    ("worse", _FEEDBACK, "worse"),
    ("inadmissible", _FEEDBACK, "better"),
    ("inadmissible", _FEEDBACK, "inadmissible"),
    ("better", _SUCCESS, "better"),
    ("worse", _SUCCESS, "worse"),
)


@dataclass(frozen=True, slots=True)
class Situation:
    """A state and actions to score: each trajectory of ``trials[name]`` takes one of them last."""

    trials: dict[str, list[Trajectory]]
    solution: Trajectory


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of the result: log-probs (nats) of the action's tokens, means over ``count`` situations.

    ``half_width`` is of the difference's 95 % interval, ``positive`` the share of positive differences.
    ``tried`` is the mean probability by which ``weighted_difference`` and its interval are weighted.
    """

    evidence: str
    action: str
    count: int
    without: float
    with_evidence: float
    difference: float
    half_width: float
    positive: float
    tried: float
    weighted_difference: float
    weighted_half_width: float


@dataclass(slots=True)
class _Player:
    """One game, recorded as the env runner would."""

    provider: AlfworldProvider
    task: Task
    history_length: int
    env: AlfworldEnv
    state: EpisodeState
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def start(cls, provider: AlfworldProvider, task: Task, history_length: int) -> _Player:
        env = provider.make_env()
        state = EpisodeState(*env.reset(options={"task_id": task.task_id}))
        return cls(provider, task, history_length, env, state)

    def fork(self) -> _Player:
        """Another player in the same state."""
        return replace(self, env=self.env.copy(), state=self.state.copy(), steps=list(self.steps))

    def act(self, thought: str, action: str) -> None:
        parts, seen = self.state.prompt_parts(self.history_length), self.state.observation
        self.state.advance(action, self.env.step(action))
        info = self.state.info
        self.steps.append(
            Step(
                prompt_ids=[],
                response_ids=[],
                old_logprobs=[],
                action_mask=[],
                version_spans=(),
                finish_reason="stop",
                messages=self.provider.messages(parts),
                response_text=response_text(thought, action),
                anchor=seen,
                action=action,
                action_valid=info["action_valid"],
                feedback=info["feedback"],
                next_observation=self.state.observation,
            )
        )

    def trajectory(self, name: str) -> Trajectory:
        success = self.state.success
        end_reason = "success" if success else "max_steps"
        return Trajectory(name, "g", 0, self.task, self.steps, 10.0 * success, success, end_reason)

    @property
    def engine(self) -> Engine:
        assert isinstance(self.env.engine, Engine)
        return self.env.engine


def find_situations(
    provider: AlfworldProvider, tasks: Sequence[Task], max_steps: int, history_length: int, seed: int
) -> list[Situation]:
    """One situation a task, if its random step finds the game neither won nor lost; the same for a seed."""
    found = (
        _situation(
            _Player.start(provider, task, history_length), max_steps, random.Random(f"{seed}:{task.task_id}")
        )
        for task in tasks
    )
    return [situation for situation in found if situation is not None]


def _situation(player: _Player, max_steps: int, rng: random.Random) -> Situation | None:
    solver = player.fork()
    for command in plan(solver.engine):
        solver.act("", command)
    searcher = Searcher(player.state.info["task_description"], rng, _NOISE)
    known: set[str] = set()
    for _ in range(rng.randrange(1, max_steps)):
        known.update(player.state.info["admissible_actions"])
        thought, action = searcher.act(player.state.observation, player.state.info["admissible_actions"])
        player.act(thought, action)
        if player.state.success:
            return None
    # What the policy would think here; a random action comes with no thought that says anything.
    thought, _ = searcher.act(player.state.observation, player.state.info["admissible_actions"])
    admissible = set(player.state.info["admissible_actions"])
    try:
        way = plan(player.engine)
    except NoPlanError:
        return None
    worse = [action for action in sorted(admissible) if _steps_left_after(player, action) >= len(way)]
    refused = sorted({*known, *imagined_actions(searcher.goal.object, known)} - admissible)
    if searcher.last_action_was_random or not worse or not refused:
        return None
    trials: dict[str, list[Trajectory]] = {}
    for name, actions in (("better", way[:1]), ("worse", worse), ("inadmissible", refused)):
        for action in actions:
            trial = player.fork()
            trial.act(thought, action)
            trials.setdefault(name, []).append(trial.trajectory(name))
    return Situation(trials, solver.trajectory("solution"))


def _steps_left_after(player: _Player, action: str) -> float:
    trial = player.engine.copy()
    trial.step(action)
    return steps_left(trial)


def likeliest_trials(
    model: Any, encoder: PromptEncoder, situations: Sequence[Situation]
) -> list[dict[str, Trajectory]]:
    """Of each name's trials in each situation the one whose action is likeliest without any evidence."""
    steps = [trial.steps[-1] for s in situations for trials in s.trials.values() for trial in trials]
    logprobs = iter(
        action_logprobs(
            model, encoder, [step.messages for step in steps], [step.response_text for step in steps]
        )
    )
    return [
        {
            name: max(zip(trials, logprobs, strict=False), key=lambda pair: pair[1])[0]
            for name, trials in situation.trials.items()
        }
        for situation in situations
    ]


def measure(model: Any, encoder: PromptEncoder, situations: Sequence[Situation]) -> list[Reading]:
    """The readings of all kinds of evidence. Raises ValueError without situations."""
    readings = []
    chosen = likeliest_trials(model, encoder, situations)
    plain = {
        name: action_logprobs(
            model,
            encoder,
            [trials[name].steps[-1].messages for trials in chosen],
            [trials[name].steps[-1].response_text for trials in chosen],
        )
        for name in dict.fromkeys(scored for _, _, scored in _LINES)
    }
    for tried, mode, scored in _LINES:
        steps = [trials[scored].steps[-1] for trials in chosen]
        contexts = [
            _context(trials[tried], mode, situation.solution)
            for trials, situation in zip(chosen, situations, strict=True)
        ]
        told = [with_context(step.messages, text) for step, text in zip(steps, contexts, strict=True)]
        responses = [step.response_text for step in steps]
        readings.append(
            _reading(
                evidence=f"feedback on the {tried} action" if mode is _FEEDBACK else "successful sample",
                action=scored,
                without=plain[scored],
                with_evidence=action_logprobs(model, encoder, told, responses),
                tried=plain[tried],
            )
        )
    return readings


def _reading(
    evidence: str, action: str, without: list[float], with_evidence: list[float], tried: list[float]
) -> Reading:
    differences = [b - a for a, b in zip(without, with_evidence, strict=True)]
    probabilities = [math.exp(logprob) for logprob in tried]
    estimate, weighted = mean_interval(differences), weighted_mean_interval(differences, probabilities)
    return Reading(
        evidence=evidence,
        action=action,
        count=estimate.count,
        without=sum(without) / len(without),
        with_evidence=sum(with_evidence) / len(with_evidence),
        difference=estimate.mean,
        half_width=estimate.half_width,
        positive=sum(difference > 0 for difference in differences) / len(differences),
        tried=sum(probabilities) / len(probabilities),
        weighted_difference=weighted.mean,
        weighted_half_width=weighted.half_width,
    )


def _context(trial: Trajectory, settings: HindsightSection, solution: Trajectory) -> str:
    """The evidence of the trial's last step, as the teacher would read it."""
    evidence = collect_evidence(GroupView([trial, solution], settings), settings)[0][-1]
    text, _ = render_context(evidence)
    assert text is not None
    return text


@torch.no_grad()
def action_logprobs(
    model: Any,
    encoder: PromptEncoder,
    prompts: Sequence[Sequence[dict[str, str]]],
    responses: Sequence[str],
) -> list[float]:
    """Σ log-probs (nats, temperature 1) of each response's action tokens after its prompt."""
    rows = []
    for messages, response in zip(prompts, responses, strict=True):
        response_ids = encoder.tokenizer.encode(response, add_special_tokens=False)
        mask = action_token_mask(response_ids, encoder.tokenizer)
        prompt_ids = encoder.encode(messages)
        rows.append((prompt_ids + response_ids, [False] * len(prompt_ids) + mask))
    sums = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = rows[start : start + _BATCH_SIZE]
        # Padding is on the right: causal attention never lets a real token see it.
        ids = pad_sequence([torch.tensor(row) for row, _ in batch], batch_first=True)
        scored = pad_sequence([torch.tensor(mask) for _, mask in batch], batch_first=True)[:, 1:]
        logprobs = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        sums += torch.where(scored, logprobs, 0.0).sum(1).tolist()
    return sums


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a model or data that do not exist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as model.path")
    parser.add_argument("--data", default="embedded", help="as env.args.data")
    parser.add_argument("--max-receptacles", type=int, default=6, help="as env.args.max_receptacles (0: all)")
    parser.add_argument("--split", default="valid_seen")
    parser.add_argument("--states", type=int, default=200, help="games to take a state from")
    parser.add_argument("--max-steps", type=int, default=10, help="steps played before the state at most")
    parser.add_argument("--history-length", type=int, default=2, help="as env.history_length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=output_file, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        model_dir = resolve_model(options.model)
        provider = make_provider({"data": options.data, "max_receptacles": options.max_receptacles or None})
        tasks = list(provider.task_set(options.split).tasks)
    except (ModelPathError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    from transformers import AutoModelForCausalLM

    random.Random(options.seed).shuffle(tasks)
    situations = find_situations(
        provider, tasks[: options.states], options.max_steps, options.history_length, options.seed
    )
    if not situations:
        print("no game left a situation to score; raise --states", file=sys.stderr)
        return 2
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    readings = measure(model, PromptEncoder.load(str(model_dir)), situations)
    print(f"{options.model}: log-prob of an action, {len(situations)} held-out states of {options.split}")
    print(
        f"{'evidence':38}{'action':14}{'without':>9}{'with':>9}{'difference, 95 %':>18}"
        f"{'tried':>8}{'weighted':>18}"
    )
    for reading in readings:
        difference = f"{reading.difference:+.2f} ± {reading.half_width:.2f}"
        weighted = f"{reading.weighted_difference:+.2f} ± {reading.weighted_half_width:.2f}"
        print(
            f"{reading.evidence:38}{reading.action:14}{reading.without:9.2f}{reading.with_evidence:9.2f}"
            f"{difference:>18}{reading.tried:>8.2f}{weighted:>18}"
        )
    if options.json:
        text = json.dumps([asdict(reading) for reading in readings], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    write_any_character()
    sys.exit(main())
