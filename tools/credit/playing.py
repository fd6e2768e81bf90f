"""Episodes in this process: recorded as an env runner would, sampled without an engine and without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envs.base import EnvProvider, Task
from serl.config import ExperimentConfig
from serl.rollout.actions import ResponseAction, action_token_mask
from serl.rollout.episode import environment_seed
from serl.rollout.episode_prompts import PromptSettings, episode_prompts
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import Prompt
from serl.types import Step, Trajectory, TrajectoryGroup, VersionSpan
from tools.credit.policy import Policy

# What is read in the place of a step's own prompt: told the episode, the prompt and the response without it.
Hint = Callable[["Episode", Prompt, list[int]], list[int] | None]


class Episode:
    """One episode of ``task``, from its reset on."""

    def __init__(self, provider: EnvProvider, policy: Policy, config: ExperimentConfig, task: Task) -> None:
        self.task = task
        self.config = config
        self._provider, self._policy = provider, policy
        self.env = provider.make_env()
        self.state = EpisodeState(
            *self.env.reset(seed=environment_seed(task.task_id), options={"task_id": task.task_id})
        )
        self.steps: list[Step] = []
        about = f"task {task.task_id!r}"
        self._prompts = episode_prompts(provider, policy.encoder, PromptSettings.of(config), about)
        self._end_reason = ""

    @property
    def ended(self) -> bool:
        return bool(self._end_reason)

    def prompt(self) -> Prompt | None:
        """What the policy is asked next; None, and the episode ends, if it is too long."""
        prompt = self._prompts.next(self.state)
        if prompt is None:
            self._end("prompt_too_long")
        return prompt

    def act(self, prompt: Prompt, response_ids: list[int], logprobs: list[float]) -> None:
        """Takes the step that a response states."""
        encoder, seen = self._policy.encoder, self.state.observation
        self._prompts.answered(response_ids)
        text = encoder.decode(response_ids)
        action = ResponseAction.of(text)
        reward = self.state.advance(action.sent, self.env.step(action.sent))
        self.steps.append(
            Step(
                prompt_ids=prompt.token_ids,
                response_ids=response_ids,
                old_logprobs=logprobs,
                action_mask=action_token_mask(response_ids, encoder.tokenizer),
                version_spans=(VersionSpan(0, len(response_ids), 0),),
                finish_reason="stop",
                messages=prompt.messages,
                response_text=text,
                anchor=seen,
                action=action.stated,
                action_valid=action.is_valid(self.state.info),
                feedback=self.state.info["feedback"],
                next_observation=self.state.observation,
                reward=reward,
                continues=len(self.steps) - 1 if prompt.origin == "continuation" else None,
            )
        )
        if self.state.success:
            self._end("success")
        elif self.state.ended:
            self._end("failure" if self.state.terminated else "truncated")
        elif len(self.steps) == self.config.env.max_steps:
            self._end("max_steps")

    def again(self) -> Episode:
        """Another episode in the same state, by the same actions; this one stays as it is."""
        other = Episode(self._provider, self._policy, self.config, self.task)
        for turn in self.state.turns:
            other.state.advance(turn.action, other.env.step(turn.action))
        other.steps, other._prompts = list(self.steps), self._prompts.copy()
        return other

    def trajectory(self, group_id: str, rollout_index: int) -> Trajectory:
        return Trajectory(
            trajectory_id=f"{group_id}-{rollout_index}",
            group_id=group_id,
            rollout_index=rollout_index,
            task=self.task,
            steps=self.steps,
            reward=self.state.reward,
            success=self.state.success,
            end_reason=self._end_reason or "max_steps",
        )

    def close(self) -> None:
        self.env.close()

    def _end(self, reason: str) -> None:
        self._end_reason = reason


def play(episodes: Sequence[Episode], policy: Policy, temperature: float, hint: Hint | None = None) -> None:
    """Plays ``episodes`` to their ends, side by side.

    With a ``hint`` every step is answered twice: as always, and then after the prompt that the hint makes of
    this answer, if it makes one; the latter is carried out.
    """
    while playing := [episode for episode in episodes if not episode.ended]:
        asked = [(episode, prompt) for episode in playing if (prompt := episode.prompt()) is not None]
        if not asked:
            continue
        responses = policy.respond([prompt.token_ids for _, prompt in asked], temperature)
        if hint is not None:
            hinted = [
                hint(episode, prompt, ids)
                for (episode, prompt), (ids, _) in zip(asked, responses, strict=True)
            ]
            chosen = [index for index, ids in enumerate(hinted) if ids is not None]
            again = policy.respond([ids for ids in hinted if ids is not None], temperature)
            for index, response in zip(chosen, again, strict=True):
                responses[index] = response
        for (episode, prompt), (ids, logprobs) in zip(asked, responses, strict=True):
            episode.act(prompt, ids, logprobs)


def play_groups(
    provider: EnvProvider, policy: Policy, config: ExperimentConfig, tasks: Sequence[Task]
) -> list[TrajectoryGroup]:
    """A group of ``training.group_size`` episodes for each task, sampled as in training."""
    size = config.training.group_size
    episodes = [Episode(provider, policy, config, task) for task in tasks for _ in range(size)]
    play(episodes, policy, config.rollout.temperature)
    for episode in episodes:
        episode.close()
    return [
        TrajectoryGroup(
            f"g{index}",
            task,
            [
                episode.trajectory(f"g{index}", rollout_index)
                for rollout_index, episode in enumerate(episodes[index * size : (index + 1) * size])
            ],
        )
        for index, task in enumerate(tasks)
    ]
