"""The algorithm once more, as plainly as it can be written: one process, one row at a time, no Ray, no vLLM.

It shares the pure functions (advantages, evidence, contexts, teacher weights, λ, loss, order of minibatches)
and nothing of what serves, buffers, packs, shards or schedules: none of that may change the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from single_process_play import play_groups
from torch import Tensor
from transformers import AutoModelForCausalLM

from envs.base import Task
from serl.batch.advantages import StepRows, estimate_advantages
from serl.batch.packing import random_minibatches
from serl.config import ExperimentConfig
from serl.hindsight.collect import collect_evidence
from serl.hindsight.context import render_context
from serl.hindsight.evidence import GroupView
from serl.hindsight.schedules import distill_coefficient, effective_lambda, teaches
from serl.hindsight.teacher_weights import teacher_weights, weighted_advantages
from serl.learner.losses import Denominators, LossTokens, policy_loss
from serl.learner.optimizer import learning_rate
from serl.rollout.prompt import PromptEncoder
from serl.rollout.told_prompt import with_context
from serl.types import Step, TrajectoryGroup


class SingleProcessLoop:
    """A policy, its teacher and an optimizer; `play` and `update` in turns are the whole algorithm."""

    def __init__(self, config: ExperimentConfig, model_dir: Path):
        self.config = config
        self.policy: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self.teacher: Any = copy.deepcopy(self.policy).requires_grad_(False)
        learner = config.learner
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=learner.lr, weight_decay=learner.weight_decay
        )
        self.encoder = PromptEncoder.load(str(model_dir))

    def play(self, tasks: Sequence[Task], weights_seq_no: int) -> list[TrajectoryGroup]:
        """One group a task, sampled by the policy of the moment."""
        return play_groups(self.policy, self.encoder, self.config, tasks, weights_seq_no)

    def update(self, groups: Sequence[TrajectoryGroup], weights_seq_no: int) -> None:
        """One update on ``groups``, the ``weights_seq_no``-th (0, 1, …)."""
        steps = [step for group in groups for t in group.trajectories for step in t.steps]
        advantages = self._advantages(groups, steps)
        taught, of_teacher = self._taught(groups, steps, weights_seq_no)
        token_advantages = self._weighted(steps, advantages, taught, of_teacher, weights_seq_no)
        group_ids = [group.group_id for group in groups for t in group.trajectories for _ in t.steps]
        learner = self.config.learner
        lr = learning_rate(learner, weights_seq_no, self.config.training.num_iterations)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr
        for epoch in range(learner.num_epochs):
            order = [self.config.seed, weights_seq_no, epoch]
            for rows in random_minibatches(group_ids, learner.num_minibatches, order):
                beta = distill_coefficient(self.config.hindsight, weights_seq_no)
                trained = [row for row in rows if advantages[row] != 0.0 or (beta and taught[row].any())]
                num_distilled = int(sum(taught[row].sum() for row in rows))
                num_tokens = sum(len(steps[row].response_ids) for row in rows)
                denominators = Denominators(num_tokens, len(rows))
                for row in trained:
                    self._loss(steps[row], token_advantages[row], denominators).backward()
                    if beta and taught[row].any():
                        distance = self._distance(steps[row], of_teacher[row], taught[row])
                        (beta * distance / num_distilled).backward()
                if trained:
                    torch.nn.utils.clip_grad_norm_(self.policy.parameters(), learner.grad_clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()

    def _loss(self, step: Step, advantages: Tensor, denominators: Denominators) -> Tensor:
        logprobs = self._logprobs(self.policy, step.prompt_ids, step.response_ids)
        tokens = LossTokens(
            logprobs,
            torch.tensor(step.old_logprobs),
            advantages,
            torch.zeros(len(logprobs)).long(),
            denominators,
            self.config.loss.aggregation,
        )
        return policy_loss(tokens, self.config.loss)[0]

    def _advantages(self, groups: Sequence[TrajectoryGroup], steps: Sequence[Step]) -> Tensor:
        section = self.config.advantage
        rows = StepRows.from_groups(groups)
        penalty = self.config.env.invalid_action_penalty
        penalties = torch.tensor([penalty * (not step.action_valid) for step in steps]).double()
        rows.rewards.sub_(penalties)
        rows.step_rewards.sub_(penalties)
        advantages, _ = estimate_advantages(rows, section)
        return torch.where(advantages < 0, section.negative_scale * advantages, advantages)

    @torch.no_grad()
    def _taught(
        self, groups: Sequence[TrajectoryGroup], steps: Sequence[Step], weights_seq_no: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each step: action tokens with evidence, bool [response], and the teacher's distributions."""
        hindsight = self.config.hindsight
        if not teaches(hindsight, weights_seq_no):
            return [torch.zeros(len(step.response_ids)).bool() for step in steps], []
        if weights_seq_no % hindsight.teacher_sync_interval == 0:
            self.teacher.load_state_dict(self.policy.state_dict())
        evidence = [
            known
            for group in groups
            for of_trajectory in collect_evidence(GroupView(group.trajectories, hindsight), hindsight)
            for known in of_trajectory
        ]
        taught, of_teacher = [], []
        for step, known in zip(steps, evidence, strict=True):
            text, _ = render_context(known)
            messages = step.messages if text is None else with_context(step.messages, text)
            prompt_ids = self.encoder.encode(messages)
            of_teacher.append(self._distributions(self.teacher, prompt_ids, step.response_ids))
            taught.append(torch.tensor(step.action_mask) & (text is not None))
        return taught, of_teacher

    @torch.no_grad()
    def _weighted(
        self,
        steps: Sequence[Step],
        advantages: Tensor,
        taught: Sequence[Tensor],
        of_teacher: Sequence[Tensor],
        weights_seq_no: int,
    ) -> list[Tensor]:
        """Each step's advantages [response tokens], those of its action tokens weighted by the teacher."""
        hindsight = self.config.hindsight
        plain = [a.repeat(len(step.response_ids)) for a, step in zip(advantages, steps, strict=True)]
        lambda_ = effective_lambda(hindsight.mixing_lambda, hindsight.lambda_decay_steps, weights_seq_no)
        if not hindsight.enabled or lambda_ == 0.0:
            return plain
        scores = [_sampled(own, step) for own, step in zip(of_teacher, steps, strict=True)]
        plain_scores = [self._logprobs(self.teacher, step.prompt_ids, step.response_ids) for step in steps]
        weights, _ = teacher_weights(
            torch.cat(plain),
            torch.cat([torch.tensor(step.old_logprobs) for step in steps]),
            torch.cat(scores),
            torch.cat(list(taught)) & torch.cat([a != 0 for a in plain]),
            weight_clip=hindsight.weight_clip,
            baseline=hindsight.baseline,
            teacher_logprobs_without_context=torch.cat(plain_scores),
            center=hindsight.center,
        )
        mixed = weighted_advantages(torch.cat(plain), weights, lambda_)
        return list(mixed.split([len(step.response_ids) for step in steps]))

    def _distance(self, step: Step, of_teacher: Tensor, taught: Tensor) -> Tensor:
        """The gated forward KL from teacher to policy, summed over the action tokens of one step."""
        kappa = self.config.hindsight.distill.gate_sharpness
        gate = torch.sigmoid(kappa * (_sampled(of_teacher, step) - torch.tensor(step.old_logprobs)))
        own = self._distributions(self.policy, step.prompt_ids, step.response_ids)
        divergence = (of_teacher.exp() * (of_teacher - own)).sum(dim=-1)
        return (gate * divergence)[taught].sum()

    def _logprobs(self, model: Any, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
        distribution = self._distributions(model, prompt_ids, response_ids)
        return distribution.gather(1, torch.tensor(response_ids)[:, None])[:, 0]

    def _distributions(self, model: Any, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
        logits = model(torch.tensor([prompt_ids + response_ids])).logits[0, len(prompt_ids) - 1 : -1]
        return torch.log_softmax(logits / self.config.rollout.temperature, dim=-1)


def _sampled(distributions: Tensor, step: Step) -> Tensor:
    return distributions.gather(1, torch.tensor(step.response_ids)[:, None])[:, 0]
