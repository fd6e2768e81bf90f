"""How much memory learners, replicas and their nodes take, from an experiment and the shape of its model.

What is counted follows from how learners are built (`serl.learner.parallel`), except for the constants below
and what one decoder layer keeps for its backward pass, which was counted in transformers' Llama and Qwen2
layers. All sizes are bytes; GB is 10⁹. The allocator's fragments are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serl.config import ExperimentConfig
from serl.config.sampling import ALL_LINEAR
from serl.hindsight.schedules import has_teacher_copy
from serl.models.shape import ModelShape

GB = 1e9

_FLOAT32 = 4
_BYTES = {"float32": 4, "bfloat16": 2}
# Estimates: contexts and workspaces of CUDA and its libraries, NCCL's channels, vLLM's graphs.
_CUDA_BYTES = 1e9
_NCCL_BYTES = 1e9
_CUDA_GRAPH_BYTES = 1e9
# vLLM packs a broadcast into two of these at either end.
_TRANSFER_BUFFER_BYTES = 2 * 2**30
# Of float32 logits one scoring holds so many copies, of a piece at a time (`serl.learner.token_scores`).
_SCORING_COPIES, _MAX_PIECE_ELEMENTS = 4, 2**25
# Float32 copies of a step's logits in vLLM's sampler.
_SAMPLER_COPIES = 4
# The newest two and the one that is being written (`serl.serving.transfer.shared_memory`).
WEIGHT_VERSIONS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What is held at one moment, by what it is for."""

    moment: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        """In GB, parts of less than 0.05 GB left out."""
        told = [f"{what} {size / GB:.1f}" for what, size in self.parts.items() if size >= 0.05 * GB]
        return f"{self.total / GB:.1f} GB {self.moment}" + (f": {', '.join(told)}" if told else "")


def learner_plans(shape: ModelShape, experiment: ExperimentConfig) -> list[Plan]:
    """What one learner holds at the moments that may be its greatest; the last one is the first learner's."""
    held = kept_by_learner(shape, experiment)
    return [
        Plan("in a forward and backward pass", held | _passes(shape, experiment)),
        Plan("as the head's gradient is reduced", held | _reducing(shape, experiment)),
        Plan("as weights are sent", _sending(shape, experiment, held)),
    ]


def awake_beside_engines(shape: ModelShape, experiment: ExperimentConfig) -> float:
    """The most that a learner holds beside engines that are awake: less than its peak if they can sleep."""
    plans = learner_plans(shape, experiment)
    return peak(plans[-1:] if experiment.serving.sleep_during_updates else plans).total


def asleep_bytes(experiment: ExperimentConfig) -> float:
    """What engines that sleep keep of the GPU that they share with a learner."""
    graphs = 0.0 if experiment.serving.engine_args.get("enforce_eager") else _CUDA_GRAPH_BYTES
    return experiment.serving.most_replicas * (_CUDA_BYTES + graphs)


def peak(plans: Iterable[Plan]) -> Plan:
    return max(plans, key=lambda plan: plan.total)


def kept_by_learner(shape: ModelShape, experiment: ExperimentConfig) -> dict[str, float]:
    """What lies on a learner's device between two micro-batches: its shards, and what CUDA takes."""
    learner, num_learners = experiment.learner, max(1, experiment.learner.num_learners)
    weights, trained = shape.num_weights / num_learners, num_trained(shape, experiment) / num_learners
    frozen = weights * (_compute_bytes(experiment) if learner.num_gpus_per_learner else _FLOAT32)
    has_teacher, has_adapters = has_teacher_copy(experiment.hindsight), experiment.model.lora is not None
    kept = {"base": frozen} if has_adapters else {}
    kept |= {"weights": trained * _FLOAT32, "optimizer": 2 * trained * _FLOAT32}
    if has_teacher:
        is_float32 = has_adapters or experiment.hindsight.teacher == "ema"
        kept["teacher"] = trained * _FLOAT32 if is_float32 else frozen
    if experiment.loss.kl_coefficient > 0.0 and not has_adapters:
        kept["reference"] = frozen
    kept["gradients"] = trained * _FLOAT32
    if learner.num_gpus_per_learner:
        uses_nccl = _is_sharded(experiment) or experiment.serving.weight_transfer == "nccl"
        kept["CUDA and NCCL"] = _CUDA_BYTES + (_NCCL_BYTES if uses_nccl else 0)
    return kept


def num_trained(shape: ModelShape, experiment: ExperimentConfig) -> int:
    """Weights that the optimizer changes."""
    lora = experiment.model.lora
    if lora is None:
        return shape.num_weights
    targets = () if lora.target_modules == (ALL_LINEAR,) else lora.target_modules
    return shape.num_adapter_weights(lora.rank, targets)


def num_published(shape: ModelShape, experiment: ExperimentConfig) -> int:
    """Weights of one version that replicas are sent."""
    return num_trained(shape, experiment) if experiment.sends_adapters else shape.num_weights


def _passes(shape: ModelShape, experiment: ExperimentConfig) -> dict[str, float]:
    learner, size = experiment.learner, _compute_bytes(experiment)
    tokens = learner.micro_batch_tokens
    parts: dict[str, float] = {}
    if _is_sharded(experiment):
        # One layer computes while the next one arrives; the root stays.
        parts["gathered layers"] = size * (shape.outside_layers + 2 * shape.layer_weights)
        # The head's gradient waits for the end of the pass, a layer's for its reduction in float32.
        head, layer = shape.head_weights, shape.layer_weights
        if experiment.model.lora is not None:
            head, layer = 0, num_trained(shape, experiment) // shape.num_layers
        parts["gradients on their way"] = size * head + (size + _FLOAT32) * layer
    elif size < _FLOAT32 and experiment.model.lora is None:
        parts["weights in bfloat16"] = size * shape.num_weights
    layer = tokens * saved_bytes_per_token(shape, experiment)
    gradients_of_mlp = tokens * 2 * shape.active_mlp_width * size
    scored = num_scored_tokens(experiment) * shape.vocabulary
    logits = scored * 2 * size + min(scored, _MAX_PIECE_ELEMENTS) * _SCORING_COPIES * _FLOAT32
    if learner.gradient_checkpointing:
        # The residual stream is float32 unless all of the model is bfloat16.
        residual = size if _computes_all_in_dtype(experiment) else _FLOAT32
        parts["layer inputs"] = tokens * shape.width * shape.num_layers * residual
        parts["one layer again, or logits"] = max(layer + gradients_of_mlp, logits)
    else:
        parts["activations"] = layer * shape.num_layers
        parts["logits"] = max(gradients_of_mlp, logits)
    return parts


def saved_bytes_per_token(shape: ModelShape, experiment: ExperimentConfig) -> float:
    """Of one decoder layer, for its backward pass, with attention whose scores are not kept."""
    attention = shape.query_width + shape.key_width
    if _compute_bytes(experiment) == _FLOAT32:
        return 24 * shape.width + 8 * attention + 16 * shape.active_mlp_width
    # Under autocast the residual stream and norms are float32; a model that is sharded, or whose own weights
    # are, is bfloat16 throughout.
    widths = 16 if _computes_all_in_dtype(experiment) else 26
    return widths * shape.width + 4 * attention + 8 * shape.active_mlp_width


def num_scored_tokens(experiment: ExperimentConfig) -> float:
    """Response tokens of a micro-batch whose responses are as long, and prompts half as long, as allowed."""
    response, prompt = experiment.rollout.max_response_length, experiment.rollout.max_prompt_length / 2
    return experiment.learner.micro_batch_tokens * response / (prompt + response)


def _reducing(shape: ModelShape, experiment: ExperimentConfig) -> dict[str, float]:
    if not _is_sharded(experiment) or experiment.model.lora is not None:
        return {}
    return {"root and its gradients": (2 * _compute_bytes(experiment) + _FLOAT32) * shape.outside_layers}


def _sending(shape: ModelShape, experiment: ExperimentConfig, held: dict[str, float]) -> dict[str, float]:
    """The first learner's; its gradients are gone by then."""
    transfer = experiment.serving.weight_transfer
    parts = {what: size for what, size in held.items() if what != "gradients"}
    version = version_bytes(num_published(shape, experiment), experiment)
    if transfer == "ipc":
        parts["whole weights"] = version
    if transfer == "nccl":
        # A buffer's tensors lie beside it until they are packed; the greatest may be larger than that.
        greatest = max(_TRANSFER_BUFFER_BYTES, version_bytes(shape.head_weights, experiment))
        parts["gathered tensors"] = min(greatest, version)
        parts["transfer buffers"] = _TRANSFER_BUFFER_BYTES
    if experiment.model.lora is not None and not experiment.sends_adapters:
        # One in float32, what is added to it, and their sum.
        parts["a weight being merged"] = 3 * _FLOAT32 * shape.width * shape.mlp_width
    return parts


def version_bytes(num_weights: int, experiment: ExperimentConfig) -> float:
    """One version of the weights, as it is sent."""
    return float(num_weights * _compute_bytes(experiment))


def replica_plan(shape: ModelShape, experiment: ExperimentConfig) -> Plan:
    """What each GPU of a replica holds before its key-value cache, which takes the rest of the engine's."""
    serving, size = experiment.serving, _compute_bytes(experiment)
    ways = serving.tensor_parallel_size
    step = serving.max_num_batched_tokens * size
    step *= 4 * shape.active_mlp_width / ways + 6 * shape.width
    sampler = serving.max_num_seqs * shape.vocabulary * _SAMPLER_COPIES * _FLOAT32
    parts = {
        "weights": version_bytes(shape.num_weights, experiment) / ways,
        "adapters": version_bytes(num_trained(shape, experiment), experiment) * experiment.sends_adapters,
        "a step's activations": step + sampler,
    }
    if serving.num_gpus_per_replica:
        parts["CUDA"] = _CUDA_BYTES
        if not serving.engine_args.get("enforce_eager"):
            parts["CUDA graphs"] = _CUDA_GRAPH_BYTES
    else:
        parts["key-value cache"] = serving.kv_cache_gib * 2**30
    return Plan("before any context is kept", parts)


def receiving_bytes(experiment: ExperimentConfig) -> float:
    """What weights take on a replica's GPU while they arrive, outside of what the engine sets aside."""
    return _TRANSFER_BUFFER_BYTES if experiment.serving.weight_transfer == "nccl" else 0.0


def context_bytes(shape: ModelShape, experiment: ExperimentConfig) -> float:
    """Keys and values of one context of ``model.max_model_len`` tokens, on each GPU of a replica."""
    heads = 2 * shape.key_width * shape.num_layers / experiment.serving.tensor_parallel_size
    return heads * _compute_bytes(experiment) * experiment.model.max_model_len


def checkpoint_bytes(shape: ModelShape, experiment: ExperimentConfig) -> float:
    """One checkpoint: what the learners train, and the policy in its own dtype, or its adapters."""
    policy = shape.num_weights * shape.bytes_per_weight
    if experiment.model.lora is not None:
        policy = num_trained(shape, experiment) * _FLOAT32
    return policy + _saved_by_learners(shape, experiment)


def _saved_by_learners(shape: ModelShape, experiment: ExperimentConfig) -> float:
    kept = kept_by_learner(shape, experiment)
    saved = sum(size for what, size in kept.items() if what in ("weights", "optimizer", "teacher"))
    return max(1, experiment.learner.num_learners) * saved


def disk_bytes(shape: ModelShape, experiment: ExperimentConfig) -> float:
    """All checkpoints that are kept, and one that is being written."""
    return (experiment.checkpoint.keep + 1) * checkpoint_bytes(shape, experiment)


def host_plan(shape: ModelShape, experiment: ExperimentConfig) -> Plan:
    """Memory of a node that holds the first learner, or, on the CPU, everything; libraries not counted."""
    learner, serving = experiment.learner, experiment.serving
    loading = shape.num_weights * _FLOAT32
    # Those in shared memory, and the one that is copied out of the learner.
    published = (WEIGHT_VERSIONS + 1) * version_bytes(num_published(shape, experiment), experiment)
    if learner.num_gpus_per_learner:
        parts = {"loading or publishing weights": max(loading, published)}
    else:
        passes = peak(learner_plans(shape, experiment)).total
        parts = {"learners": max(1, learner.num_learners) * passes, "published weights": published}
    parts["a checkpoint being written"] = _saved_by_learners(shape, experiment)
    if not serving.num_gpus_per_replica:
        parts["replicas"] = serving.fewest_replicas * replica_plan(shape, experiment).total
    return Plan("on the first learner's node", parts)


def _is_sharded(experiment: ExperimentConfig) -> bool:
    return experiment.learner.num_learners > 1


def _computes_all_in_dtype(experiment: ExperimentConfig) -> bool:
    return _is_sharded(experiment) or experiment.model.lora is not None


def _compute_bytes(experiment: ExperimentConfig) -> int:
    return _BYTES[experiment.model.dtype]
