"""Episodes by transformers' own generation, all of a batch side by side in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from envs.base import EnvProvider, Task
from envs.registry import make_provider
from serl.config import ExperimentConfig, RolloutSection
from serl.rollout.actions import ResponseAction, action_token_mask
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from serl.types import Step, Trajectory, TrajectoryGroup, VersionSpan


def play_groups(
    policy: Any, encoder: PromptEncoder, config: ExperimentConfig, tasks: Sequence[Task], weights_seq_no: int
) -> list[TrajectoryGroup]:
    """One group a task; the global random state decides what is sampled."""
    provider = make_provider(config.env.name, config.env.args)
    size = config.training.group_size
    episodes = [
        _Episode(provider, encoder, config.env.history_length, task) for task in tasks for _ in range(size)
    ]
    for _ in range(config.env.max_steps):
        playing = [episode for episode in episodes if not episode.state.ended]
        if not playing:
            break
        prompts = [episode.messages() for episode in playing]
        sampled = _sample(policy, encoder, config.rollout, prompts)
        for episode, messages, (prompt_ids, response_ids, logprobs) in zip(
            playing, prompts, sampled, strict=True
        ):
            episode.act(messages, prompt_ids, response_ids, logprobs, weights_seq_no)
    groups = []
    for index, task in enumerate(tasks):
        name, own = f"g{weights_seq_no}-{index}", episodes[index * size : (index + 1) * size]
        trajectories = [episode.trajectory(name, rollout_index) for rollout_index, episode in enumerate(own)]
        groups.append(TrajectoryGroup(name, task, trajectories))
    return groups


@torch.no_grad()
def _sample(
    policy: Any, encoder: PromptEncoder, rollout: RolloutSection, prompts: Sequence[Sequence[dict[str, str]]]
) -> list[tuple[list[int], list[int], list[float]]]:
    """``(prompt_ids, response_ids, their log-probs)`` of each prompt, padded on the left."""
    stop_ids = [policy.config.eos_token_id]
    stop_ids += [encoder.tokenizer.convert_tokens_to_ids(text) for text in rollout.stop]
    encoded = [encoder.encode(messages) for messages in prompts]
    longest = max(map(len, encoded))
    masks = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded])
    generated = policy.generate(
        input_ids=torch.tensor([[0] * (longest - len(ids)) + ids for ids in encoded]),
        attention_mask=masks,
        do_sample=True,
        temperature=rollout.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=rollout.max_response_length,
        eos_token_id=stop_ids,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = torch.stack(generated.scores, dim=1).log_softmax(-1)
    sampled = []
    for ids, sequence, distribution in zip(encoded, generated.sequences[:, longest:], scores, strict=True):
        ends = [place for place, token in enumerate(sequence.tolist()) if token in stop_ids]
        response = sequence[: ends[0] + 1] if ends else sequence
        logprobs = distribution[: len(response)].gather(1, response[:, None])[:, 0]
        sampled.append((ids, response.tolist(), logprobs.tolist()))
    return sampled


class _Episode:
    def __init__(self, provider: EnvProvider, encoder: PromptEncoder, history_length: int, task: Task):
        self.provider, self.encoder, self.history_length = provider, encoder, history_length
        self.task, self.env = task, provider.make_env()
        self.state = EpisodeState(*self.env.reset(options={"task_id": task.task_id}))
        self.steps: list[Step] = []

    def messages(self) -> tuple[dict[str, str], ...]:
        return self.provider.messages(self.state.prompt_parts(self.history_length))

    def act(
        self, messages: Any, prompt_ids: list[int], response_ids: list[int], logprobs: Any, version: int
    ) -> None:
        text = self.encoder.decode(response_ids)
        action = ResponseAction.of(text)
        seen = self.state.observation
        self.state.advance(action.sent, self.env.step(action.sent))
        self.steps.append(
            Step(
                prompt_ids=prompt_ids,
                response_ids=response_ids,
                old_logprobs=logprobs,
                action_mask=action_token_mask(response_ids, self.encoder.tokenizer),
                version_spans=(VersionSpan(0, len(response_ids), version),),
                finish_reason="stop",
                messages=messages,
                response_text=text,
                anchor=seen,
                action=action.stated,
                action_valid=action.is_valid(self.state.info),
                feedback=self.state.info["feedback"],
                next_observation=self.state.observation,
            )
        )

    def trajectory(self, group_id: str, rollout_index: int) -> Trajectory:
        state, name = self.state, f"{group_id}-{rollout_index}"
        end_reason = "success" if state.success else "max_steps"
        return Trajectory(
            name, group_id, rollout_index, self.task, self.steps, state.reward, state.success, end_reason
        )
