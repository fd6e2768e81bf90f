"""What the metrics ``learner/…`` of a run mean; a part of `serl.run.metrics_reference`."""

from __future__ import annotations

from collections.abc import Mapping

LEARNER: Mapping[str, str] = {
    "num_rows": "Rows of the batch: one for each environment step.",
    "num_rows_with_advantage": "Rows whose advantage is not 0.",
    "advantage_mean": "Mean advantage of all rows.",
    "advantage_std": "Standard deviation of the rows' advantages.",
    "positive_fraction": "Share of rows with a positive advantage.",
    "gigpo_anchor_size_mean": "With `gigpo`, mean number of steps of a group that share an observation.",
    "gigpo_anchor_size_max": "With `gigpo`, the most steps of a group that share an observation.",
    "gigpo_anchor_alone_share": "With `gigpo`, share of steps whose observation no other step has.",
    "num_rows_without_action": "Rows with an advantage but without an action token, which get no context.",
    "num_teacher_prompts": "Rows that the teacher reads with evidence.",
    "num_contexts_shortened": "Contexts that lost quoted steps to fit `hindsight.max_context_length`.",
    "num_context_steps_left_out": "Quoted steps that these lost.",
    "num_contexts_too_long": "Contexts that were too long even so, and were left out.",
    "evidence_share/any": "Share of rows with an advantage for which there is evidence.",
    "evidence_share/<source>": "Share of rows with an advantage for which this source has evidence.",
    "evidence_anchor_size_mean": "With `granularity: anchor`, mean number of steps that share an "
    "observation.",
    "evidence_anchor_size_max": "With `granularity: anchor`, the most steps that share an observation.",
    "evidence_anchor_alone_share": "With `granularity: anchor`, share of steps whose observation no "
    "other step has.",
    "loss": "The loss, mean over minibatches.",
    "lr": "The learning rate of this update.",
    "grad_norm": "Global gradient norm before clipping, mean over optimizer steps.",
    "entropy": "Mean entropy of the policy over trained tokens, in nats.",
    "clip_fraction": "Share of trained tokens whose loss the ratio's clipping raised.",
    "dual_clip_fraction": "Share of trained tokens whose loss `dual_clip` bounds.",
    "ratio_mean": "Mean ratio of new to old probability over trained tokens.",
    "approx_kl": "Mean of ratio − 1 − log ratio over trained tokens, in nats: estimates KL(old ‖ new).",
    "approx_kl_k1": "Mean of −log ratio over trained tokens, in nats: another estimate of the same.",
    "reference_kl": "Mean KL to the policy that the run began with, in nats, where "
    "`loss.kl_coefficient` is positive.",
    "importance_weight_mean": "Mean truncated importance weight of trained tokens.",
    "importance_capped_fraction": "Share of trained tokens whose importance weight was truncated.",
    "behaviour_kl": "Mean of −log importance ratio, in nats: estimates KL(sampler ‖ policy before "
    "the update).",
    "num_optimizer_steps": "Optimizer steps of the update.",
    "num_skipped_optimizer_steps": "Optimizer steps skipped because gradients were not finite.",
    "num_trained_tokens": "Prompt and response tokens of trained rows, once for each epoch.",
    "learner_tokens_per_s": "These over the seconds of forward, backward and optimizer.",
    "num_computed_tokens": "Of these what was computed: tokens that rows of a micro-batch begin with "
    "together once, and fillers where a model cannot do that.",
    "saved_token_share": "Share of `num_trained_tokens` that did not have to be computed.",
    "train_inference_mismatch": "Mean |sampler's − learner's log-prob| of response tokens before the "
    "update, in nats.",
    "train_inference_mismatch_on_policy": "The same over tokens that the newest weights sampled: "
    "near 0 if weights land and both engines agree.",
    "train_inference_mismatch_on_policy_max": "The greatest of these, in nats.",
    "effective_lambda": "λ of this update: how much of an advantage the teacher's weight may change.",
    "effective_distill_coefficient": "β of this update: what the divergence counts for in the loss.",
    "num_distilled_tokens": "Action tokens that are drawn to the teacher's distributions.",
    "distill_divergence": "Mean divergence of the student from the teacher with context over "
    "distilled tokens, in nats, before gating.",
    "distill_gate": "Mean gate of distilled tokens.",
    "teacher_weight_mean": "Mean weight of weighted tokens.",
    "teacher_clipped_fraction": "Share of weighted tokens whose weight is at a bound of `weight_clip`.",
    "teacher_num_selected_tokens": "Weighted tokens: action tokens of rows that the teacher read, with "
    "`weight: action_probability` all of their tokens.",
    "teacher_action_probability_mean": "With that weight, mean probability that the teacher gives the action "
    "of a weighted token's step.",
    "teacher_<sign>_weight_mean": "Mean weight of weighted tokens with a `positive` or `negative` advantage.",
    "teacher_<sign>_weight_min": "The least weight of these.",
    "teacher_<sign>_weight_max": "The greatest weight of these.",
    "teacher_<sign>_clipped_fraction": "Share of these whose weight is at a bound.",
    "teacher_<sign>_num_selected_tokens": "How many these are.",
    "teacher_log_ratio_mean": "Mean Δ of weighted tokens, in nats: log-prob by the teacher with "
    "context − by the baseline, before centring.",
    "teacher_abs_log_ratio_mean": "Mean |Δ| of weighted tokens, in nats.",
    "teacher_abs_log_ratio/<source>": "Mean |Δ| of the weighted tokens whose context has evidence of "
    "this source, in nats.",
    "teacher_context_effect": "Mean of log-prob by the teacher with context − without it, over "
    "compared tokens, in nats.",
    "teacher_abs_context_effect": "Mean size of the same, in nats.",
    "teacher_log_ratio_without_context": "Mean of log-prob by the teacher without context − by the "
    "student, over compared tokens, in nats: how far the two have drifted apart.",
    "teacher_abs_log_ratio_without_context": "Mean size of the same, in nats.",
    "teacher_num_compared_tokens": "Weighted tokens that the teacher also scored without context.",
    "num_teacher_tokens": "Prompt and response tokens that the teacher read, once for each time.",
    "teacher_tokens_per_s": "These over the teacher's seconds.",
    "num_computed_teacher_tokens": "Of these what was computed, likewise.",
    "seconds_plan": "Seconds that the driver took to join the batch's rows and to plan the update.",
    "seconds_update": "Seconds of the whole update.",
    "seconds_put_to_sleep": "Seconds until engines had given their memory back, where "
    "`serving.sleep_during_updates` is set.",
    "seconds_teacher": "Seconds of the teacher's forward passes.",
    "seconds_proximal": "Seconds of the policy's log-probs before the update, where "
    "`loss.truncated_importance_sampling_cap` is set.",
    "seconds_reference": "Seconds of the log-probs of the policy that the run began with.",
    "seconds_forward_backward": "Seconds of forward and backward passes.",
    "seconds_optimizer": "Seconds of clipping and optimizer steps.",
}
