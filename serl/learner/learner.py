"""`SERLLearner`: one learner's part of an update.

    plan ─▶ teacher log-probs ─▶ token advantages ─▶ minibatches ─▶ micro-batches: forward, loss, backward
                                                          └─▶ clip, AdamW step

The plan (`serl.batch.packing`) comes with global denominators, so the losses of all micro-batches of all
learners add up to the loss of the minibatch, and so do their gradients.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from serl.batch.packing import LearnerPlan, MicroBatch, Minibatch
from serl.config import ExperimentConfig
from serl.durable_files import FileDigest
from serl.hindsight.schedules import distill_coefficient, has_teacher_copy, teacher_lambda, teaches
from serl.hindsight.teacher_weights import whole_batch
from serl.learner.actors import SAVING, LearnerProcess
from serl.learner.adapters import OtherAdapters, Scorer
from serl.learner.distill_targets import DistillTargets
from serl.learner.loss import LossBatch, compute_loss
from serl.learner.loss_targets import LossTargets
from serl.learner.optimizer import OptimizerStep, learning_rate, make_optimizer
from serl.learner.parallel import (
    fill_from_first_learner,
    full_tensors,
    gather_over_learners,
    shard_module,
)
from serl.learner.publishing import published_weights
from serl.learner.records import teacher_records
from serl.learner.report import LearnerReport
from serl.learner.response_tokens import ResponseTokens
from serl.learner.rl_module import TEACHER, CausalLMModule, build_model
from serl.learner.saving import StateSaver, saved_bytes
from serl.learner.state import LearnerState, load_state
from serl.learner.teacher import (
    WeightedTokens,
    copy_policy,
    copy_weights,
    follow_policy,
    num_teacher_tokens,
    report_log_ratios,
    score_actions,
    weigh_tokens,
)
from serl.learner.token_batch import Layout, TokenBatch, make_token_batch
from serl.learner.token_scores import TokenScores
from serl.models.weights import named_weights
from serl.no_pickles import NoPickles
from serl.private.rllib import forget_registered_parameters, learner_index
from serl.serving.transfer.sender import Weights
from serl.serving.weights import Broadcast, WeightPublisher


class SERLLearner(LearnerProcess, NoPickles, TorchLearner):
    """Policy, teacher and optimizer of one learner process; `SERLLearnerGroup` calls the public methods.

    With more than one learner all of them must be given the same call: they meet in collectives.
    """

    config: Any  # a `serl.algorithm.SERLConfig`, which stands after this room

    def build(self) -> None:
        self._experiment: ExperimentConfig = self.config.experiment
        torch.set_num_threads(self._experiment.learner.num_threads)
        # RLlib asks for deterministic algorithms; overwriting every new tensor with NaN is no part of that.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # cuDNN, PyTorch's first choice on Hopper and Blackwell, plans every shape that it has not met, for
        # up to a second, and hardly any two micro-batches have one shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self._compute_dtype: torch.dtype = getattr(torch, self._experiment.model.dtype)
        self._num_learners = max(1, self._experiment.learner.num_learners)
        self._publisher: WeightPublisher | None = None
        super().build()
        self._optimizer_step = OptimizerStep(self._optimizer, self._experiment.learner.grad_clip)
        self._saver = StateSaver(self.device, self.saving_group)

    @property
    def policy(self) -> CausalLMModule:
        return self.module[DEFAULT_MODULE_ID]  # type: ignore[return-value]

    @property
    def teacher(self) -> Scorer | None:
        """A copy, or other adapters; None without one, and from the first update on that needs no teacher."""
        return self._teacher

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(parameters, self._experiment.learner)
        self.register_optimizer(module_id=module_id, optimizer=self._optimizer, params=parameters)

    def _make_modules_ddp_if_necessary(self) -> None:
        """RLlib's hook at the end of `build`: the teacher is copied, and FSDP2 shards instead of DDP."""
        hindsight, on_gpu = self._experiment.hindsight, self.device.type == "cuda"
        frozen_dtype = self._compute_dtype if on_gpu else torch.float32
        has_copy = has_teacher_copy(hindsight)
        has_reference = self._experiment.loss.kl_coefficient > 0.0
        # A moving average in bfloat16 would round its small steps away.
        teacher_dtype = torch.float32 if hindsight.teacher == "ema" else frozen_dtype
        # A checkpoint is loaded later: the reference is the policy that the run began with, resumed or not.
        self._teacher: Scorer | None = None
        self._reference: Scorer | None = None
        if self.policy.lora is not None:
            self._teacher = OtherAdapters(self.policy, TEACHER) if has_copy else None
            self._reference = OtherAdapters(self.policy, None) if has_reference else None
        else:
            self._teacher = copy_policy(self.policy, teacher_dtype) if has_copy else None
            self._reference = copy_policy(self.policy, frozen_dtype) if has_reference else None
        if self.distributed:
            self._shard_and_fill()
            # Sharding made new parameters; those that RLlib knows belong to nothing any more.
            forget_registered_parameters(self)
            self.configure_optimizers()

    def _shard_and_fill(self) -> None:
        """No device holds more than its shards and one whole tensor; the first learner reads the files."""
        shard_module(self.policy, self._compute_dtype, self.device)
        is_first = learner_index(self) == 0
        model = build_model(self.policy.model_config, empty=False) if is_first else None  # type: ignore[arg-type]
        fill_from_first_learner(
            named_weights(self.policy.model), {} if model is None else named_weights(model)
        )
        for module in (self._teacher, self._reference):
            if isinstance(module, CausalLMModule):
                shard_module(module, self._compute_dtype, self.device)
                copy_weights(self.policy, module)

    def _map_module_to_device(self, module: Any) -> None:
        """RLlib's hook: a module that will be sharded has nothing to move yet."""
        if not self.distributed:
            super()._map_module_to_device(module)

    def layout(self) -> Layout:
        """How a micro-batch's rows become one tensor; answers when nothing else is being done."""
        return self.policy.layout

    def update_policy(self, plan: LearnerPlan, weights_seq_no: int) -> LearnerReport:
        """Trains the weights ``weights_seq_no``, the number of updates so far, on ``plan``.

        Recorded rows get a `TeacherRecord` in the report. Raises NonFiniteGradientsError when optimizer steps
        keep having to be skipped.
        """
        report = LearnerReport()
        if self._experiment.serving.sleep_during_updates:
            with report.timed("put_to_sleep"):
                self._weight_publisher().put_to_sleep()
        num_updates = self._experiment.training.num_iterations
        lr = learning_rate(self._experiment.learner, weights_seq_no, num_updates)
        grad_norms: list[float] = []
        with report.timed("update"):
            targets = self._targets(plan, weights_seq_no, report)
            for index, minibatch in enumerate(plan.minibatches):
                with report.timed("forward_backward"):
                    self._backward(plan, minibatch, targets, report, is_first=index == 0)
                with report.timed("optimizer"):
                    grad_norm, stepped = self._optimizer_step.apply(lr)
                if stepped:
                    grad_norms.append(grad_norm)
        report.shared |= {
            "lr": lr,
            "num_optimizer_steps": float(len(grad_norms)),
            "num_skipped_optimizer_steps": float(len(plan.minibatches) - len(grad_norms)),
            "grad_norm": sum(grad_norms) / max(len(grad_norms), 1),
        }
        return report

    def gradients(self, plan: LearnerPlan, weights_seq_no: int) -> dict[str, Tensor]:
        """The whole gradient of the plan's first minibatch by parameter name; nothing is updated."""
        report = LearnerReport()
        targets = self._targets(plan, weights_seq_no, report)
        self._backward(plan, plan.minibatches[0], targets, report, is_first=True)
        weights = named_weights(self.policy.model)
        sharded = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        gradients = dict(full_tensors(sharded))
        self._optimizer.zero_grad(set_to_none=True)
        return gradients

    def publish_weights(self, weights_seq_no: int) -> Broadcast | None:
        """Gathers the weights on all learners; the first one sends them to the deployment and reports."""
        weights = self._published_weights()
        try:
            if learner_index(self) == 0:
                return self._weight_publisher().publish(weights, weights_seq_no)
            return None
        finally:
            # The other learners are in the middle of gathering, whatever happened here.
            for _ in weights:
                pass

    def saved_bytes(self) -> int:
        """The size of what `write_state` will write, of all learners."""
        return saved_bytes(self._state())

    def copy_state(self) -> None:
        """Copies what this learner has of a checkpoint; see `serl.learner.saving`."""
        self._saver.copy(self._state())

    @ray.method(concurrency_group=SAVING)
    def write_state(self, directory: str) -> dict[str, FileDigest]:
        """Writes the last copy, beside an update if there is one, and returns this learner's files."""
        return self._saver.write(Path(directory))

    def load(self, directory: str) -> None:
        """Resumes from a checkpoint; raises LearnerStateError if it does not fit the policy."""
        if not load_state(Path(directory), self._state(), self.saving_group):
            self._teacher = None

    def compute_loss_for_module(
        self, *, module_id: str, config: Any = None, batch: LossBatch, fwd_out: TokenScores
    ) -> Tensor:
        """RLlib's name for `serl.learner.loss.compute_loss`, without its metrics."""
        return compute_loss(fwd_out, batch, self._experiment.loss)[0]

    def _targets(self, plan: LearnerPlan, weights_seq_no: int, report: LearnerReport) -> LossTargets:
        tokens = ResponseTokens.of(plan.rows, weights_seq_no, self.device)
        with report.timed("teacher"):
            weighted = self._weighted_tokens(plan, tokens, weights_seq_no, report)
            distilled = self._distill_targets(tokens, weighted, weights_seq_no, report)
        report.records = teacher_records(plan.rows, tokens, weighted)
        old_logprobs, reference_logprobs = tokens.old_logprobs, None
        if self._experiment.loss.truncated_importance_sampling_cap is not None:
            with report.timed("proximal"):
                old_logprobs = self._logprobs_before_update(self.policy, plan, tokens)
        if self._reference is not None:
            with report.timed("reference"):
                reference_logprobs = self._logprobs_before_update(self._reference, plan, tokens)
        max_response_length = self._experiment.rollout.max_response_length
        return LossTargets(
            tokens, weighted.advantages, old_logprobs, reference_logprobs, max_response_length, distilled
        )

    def _distill_targets(
        self, tokens: ResponseTokens, weighted: WeightedTokens, weights_seq_no: int, report: LearnerReport
    ) -> DistillTargets | None:
        hindsight = self._experiment.hindsight
        if not hindsight.distills:
            return None
        coefficient = distill_coefficient(hindsight, weights_seq_no)
        report.shared["effective_distill_coefficient"] = coefficient
        report.sums["num_distilled_tokens"] += float(tokens.distilled.sum())
        if weighted.scores is None:
            return None
        return DistillTargets.of(hindsight.distill, coefficient, tokens, weighted.scores)

    def _weighted_tokens(
        self, plan: LearnerPlan, tokens: ResponseTokens, weights_seq_no: int, report: LearnerReport
    ) -> WeightedTokens:
        hindsight = self._experiment.hindsight
        lambda_ = teacher_lambda(hindsight, weights_seq_no)
        report.shared["effective_lambda"] = lambda_
        teacher = self._teacher_of(weights_seq_no)
        if teacher is None:
            return WeightedTokens.unweighted(tokens)
        scores, num_computed = score_actions(teacher, plan, tokens, self._forward, self._num_top_tokens(plan))
        weighted, metrics = weigh_tokens(
            tokens,
            scores,
            hindsight,
            lambda_,
            seed=(self._experiment.seed, weights_seq_no),
            gather=gather_over_learners if self.distributed else whole_batch,
        )
        report.add_teacher_metrics(metrics)
        report_log_ratios(plan.rows, tokens, weighted, report)
        report.sums["num_teacher_tokens"] += num_teacher_tokens(plan)
        report.sums["num_computed_teacher_tokens"] += num_computed
        return weighted

    def _teacher_of(self, weights_seq_no: int) -> Scorer | None:
        """The teacher of the coming update, with the weights that it is to have then."""
        hindsight = self._experiment.hindsight
        if not teaches(hindsight, weights_seq_no):
            self._teacher = None
        elif hindsight.teacher == "live":
            return self.policy
        elif self._teacher is not None:
            follow_policy(self.policy, self._teacher, hindsight, weights_seq_no)
        return self._teacher

    def _num_top_tokens(self, plan: LearnerPlan) -> int:
        return self._experiment.hindsight.distill.top_k if plan.rows.distilled.any() else 0

    @torch.no_grad()
    def _logprobs_before_update(self, scorer: Scorer, plan: LearnerPlan, tokens: ResponseTokens) -> Tensor:
        """The log-probs of all response tokens by ``scorer``, [T]: one more forward pass over all rows."""
        logprobs = tokens.old_logprobs.clone()
        for rows in plan.micro_batches:
            scored = self._forward(scorer, self._token_batch(plan, rows))
            if rows:
                logprobs[tokens.positions(rows)] = scored.logprobs
        return logprobs

    def _backward(
        self,
        plan: LearnerPlan,
        minibatch: Minibatch,
        targets: LossTargets,
        report: LearnerReport,
        is_first: bool,
    ) -> None:
        """Adds the minibatch's gradient to the parameters, and its metrics to ``report``."""
        for rows in minibatch.micro_batches:
            token_batch = self._token_batch(plan, rows)
            if not rows:
                (self._forward(self.policy, token_batch).logprobs.sum() * 0.0).backward()
                continue
            batch = targets.micro_batch(rows, minibatch, token_batch.row_ids)
            if batch.distilled is not None:
                token_batch = replace(token_batch, comparison=batch.distilled.comparison)
            scores = self._forward(self.policy, token_batch)
            loss, metrics = compute_loss(scores, batch, self._experiment.loss)
            if not loss.isfinite():
                # Clipping can keep a NaN out of the gradient; the step has to be skipped by all learners.
                loss = scores.logprobs.sum() * math.nan
            # FSDP2 averages gradients over the learners; the loss is a part of a sum.
            (loss * self._num_learners).backward()
            metrics |= {"loss": loss.detach()}
            report.add_micro_batch(scores, batch, metrics, minibatch, num_minibatches=len(plan.minibatches))
            report.sums["num_trained_tokens"] += float(plan.rows.num_tokens[list(rows)].sum())
            report.sums["num_computed_tokens"] += float(token_batch.input_ids.numel())
            if is_first:
                targets.report_mismatch(rows, scores.logprobs.detach(), report)

    def _token_batch(self, plan: LearnerPlan, rows: MicroBatch) -> TokenBatch:
        """The tensors of ``rows``; of a one-token dummy for an empty micro-batch."""
        return make_token_batch(
            [plan.rows.prompt_ids[row] for row in rows] or [[0]],
            [plan.rows.response_ids[row] for row in rows] or [[0]],
            None,
            layout=self.policy.layout,
            device=self.device,
        )

    def _forward(self, scorer: Scorer, batch: TokenBatch) -> TokenScores:
        # A sharded module computes in its own mixed precision.
        lower = self._compute_dtype != torch.float32 and not self.distributed
        with torch.autocast(self.device.type, dtype=self._compute_dtype, enabled=lower):
            return scorer(batch)

    def _published_weights(self) -> Weights:
        return published_weights(self.policy, self._compute_dtype, self._experiment.sends_adapters)

    def _weight_publisher(self) -> WeightPublisher:
        if self._publisher is None:
            names, serving = self.config.serving_names, self._experiment.serving
            if names is None:
                raise RuntimeError(
                    "weights cannot be published: the learner was told of no policy deployment"
                )
            self._publisher = WeightPublisher(names, serving.weight_transfer, serving.update_timeout_s)
        return self._publisher

    def _state(self) -> LearnerState:
        return LearnerState(self.policy, self._teacher, self._optimizer, self._optimizer_step)
