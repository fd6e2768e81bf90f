"""Keys of an experiment that contradict each other; every sentence names both and says why."""

from __future__ import annotations

from collections.abc import Iterator

from serl.config.hindsight import HindsightSection, judged_sources
from serl.config.objective import LossSection
from serl.config.run import EvaluationSection
from serl.config.sampling import EnvSection, ModelSection, RolloutSection
from serl.config.serving import ServingSection
from serl.config.training import LearnerSection, TrainingSection


def lengths(model: ModelSection, rollout: RolloutSection, hindsight: HindsightSection) -> Iterator[str]:
    """Prompts, responses and contexts that do not fit where they must."""
    if rollout.max_prompt_length + rollout.max_response_length > model.max_model_len:
        yield (
            f"rollout.max_prompt_length = {rollout.max_prompt_length} + rollout.max_response_length = "
            f"{rollout.max_response_length} contradicts model.max_model_len = {model.max_model_len}: "
            "the longest prompt and response do not fit in the engine's context"
        )
    if hindsight.enabled and hindsight.max_context_length < rollout.max_prompt_length:
        yield (
            f"hindsight.max_context_length = {hindsight.max_context_length} contradicts "
            f"rollout.max_prompt_length = {rollout.max_prompt_length}: a prompt alone may be longer "
            "than prompt and evidence together may be"
        )


def env_runners(rollout: RolloutSection, serving: ServingSection) -> Iterator[str]:
    """What their number cannot be."""
    scaling = rollout.autoscaling
    if scaling is None:
        return
    if rollout.num_env_runners != 1:
        yield (
            f"rollout.num_env_runners = {rollout.num_env_runners} contradicts rollout.autoscaling: "
            "give a fixed number or min_env_runners and max_env_runners, not both"
        )
    if scaling.min_env_runners > scaling.max_env_runners:
        yield (
            f"rollout.autoscaling.min_env_runners = {scaling.min_env_runners} contradicts "
            f"rollout.autoscaling.max_env_runners = {scaling.max_env_runners}"
        )
    replicas = serving.autoscaling
    if replicas is not None and scaling.max_episodes_per_replica <= replicas.target_ongoing_requests:
        yield (
            f"rollout.autoscaling.max_episodes_per_replica = {scaling.max_episodes_per_replica} contradicts "
            f"serving.autoscaling.target_ongoing_requests = {replicas.target_ongoing_requests:g}: so few "
            "episodes never have the requests for which another replica is started"
        )


def replicas(serving: ServingSection) -> Iterator[str]:
    """What an engine, or their number, cannot be."""
    scaling = serving.autoscaling
    if scaling is not None and serving.num_replicas != 1:
        yield (
            f"serving.num_replicas = {serving.num_replicas} contradicts serving.autoscaling: "
            "give a fixed number or min_replicas and max_replicas, not both"
        )
    if scaling is not None and scaling.min_replicas > scaling.max_replicas:
        yield (
            f"serving.autoscaling.min_replicas = {scaling.min_replicas} contradicts "
            f"serving.autoscaling.max_replicas = {scaling.max_replicas}"
        )
    if serving.max_num_batched_tokens < serving.max_num_seqs:
        yield (
            f"serving.max_num_batched_tokens = {serving.max_num_batched_tokens} contradicts "
            f"serving.max_num_seqs = {serving.max_num_seqs}: every running sequence needs a token a step"
        )
    if serving.tensor_parallel_size > 1 and serving.num_gpus_per_replica != serving.tensor_parallel_size:
        yield (
            f"serving.tensor_parallel_size = {serving.tensor_parallel_size} contradicts "
            f"serving.num_gpus_per_replica = {serving.num_gpus_per_replica:g}: a replica needs one GPU each"
        )
    for key in ("pipeline_parallel_size", "data_parallel_size"):
        size = serving.engine_args.get(key, 1)
        if size != 1:
            yield (
                f"serving.engine_args.{key} = {size} contradicts serving.tensor_parallel_size = "
                f"{serving.tensor_parallel_size}: weights are sent to the workers of tensor parallelism only"
            )


def gateway(env: EnvSection, rollout: RolloutSection, serving: ServingSection) -> Iterator[str]:
    """An agent without a gateway, what an agent does not heed, and what only a gateway heeds."""
    if env.plays_by_itself and not serving.gateway:
        yield (
            f"env.name = {env.name} contradicts serving.gateway = false: an agent asks the policy through "
            "the gateway; set serving.gateway: true"
        )
    if env.plays_by_itself and rollout.prompt != "window":
        yield (
            f"rollout.prompt = {rollout.prompt} contradicts env.name = {env.name}: an agent makes its "
            "prompts itself; leave it at window"
        )
    if serving.tool_parser is not None and not serving.gateway:
        yield (
            f"serving.tool_parser = {serving.tool_parser} contradicts serving.gateway = false: only requests "
            "to the gateway offer tools"
        )


def weight_transfer(serving: ServingSection, learner: LearnerSection) -> Iterator[str]:
    """A way for weights that is not there, and engines that have no memory to give."""
    way = f"serving.weight_transfer = {serving.weight_transfer}"
    if serving.sleep_during_updates and serving.weight_transfer != "ipc":
        yield (
            f"serving.sleep_during_updates = true contradicts {way}: only where learner and replica share a "
            "GPU, and weights stay on it, is there memory to give; use ipc"
        )
    if serving.weight_transfer == "auto":
        return
    if serving.weight_transfer == "shared_memory":
        if serving.num_gpus_per_replica > 0:
            yield (
                f"{way} contradicts serving.num_gpus_per_replica = {serving.num_gpus_per_replica:g}: "
                "shared memory alone feeds replicas on the CPU; use nccl, ipc or auto"
            )
        return
    for key, num_gpus in (
        ("serving.num_gpus_per_replica", serving.num_gpus_per_replica),
        ("learner.num_gpus_per_learner", learner.num_gpus_per_learner),
    ):
        if num_gpus == 0:
            yield f"{way} contradicts {key} = 0: it sends from GPU to GPU; use auto on the CPU"
    if serving.weight_transfer == "nccl" and serving.autoscaling is not None:
        yield f"{way} contradicts serving.autoscaling: nccl needs a fixed number of replicas"
    if serving.weight_transfer == "nccl" and learner.num_learners == 0:
        yield (
            f"{way} contradicts learner.num_learners = 0: Ray may give the GPU of a learner in the driver's "
            "process to a replica, and nccl needs a GPU each; use 1"
        )
    if serving.weight_transfer == "ipc":
        yield from _one_gpu(way, serving, learner)


def _one_gpu(way: str, serving: ServingSection, learner: LearnerSection) -> Iterator[str]:
    if learner.num_learners > 1:
        yield (
            f"{way} contradicts learner.num_learners = {learner.num_learners}: it leads to the GPU of one "
            "learner only; use nccl"
        )
    num_gpus = serving.most_replicas * serving.num_gpus_per_replica + learner.num_gpus_per_learner
    if round(num_gpus, 6) > 1:
        yield (
            f"{way} contradicts serving.num_gpus_per_replica = {serving.num_gpus_per_replica:g} and "
            f"learner.num_gpus_per_learner = {learner.num_gpus_per_learner:g}: replicas and learner make "
            f"{num_gpus:g} GPUs, and ipc stays within one; give each a share of it, or use nccl"
        )


# The largest that vLLM 0.32 has kernels for.
_MAX_SERVED_RANK = 512


def adapters(model: ModelSection, serving: ServingSection, sends_adapters: bool) -> Iterator[str]:
    """Adapters that replicas cannot be sent."""
    lora = model.lora
    if lora is None or not sends_adapters:
        return
    if serving.sleep_during_updates:
        yield (
            f"model.lora.broadcast = {lora.broadcast} contradicts serving.sleep_during_updates = true: an "
            "engine that slept has to be sent all weights; set model.lora.broadcast: merged"
        )
    if lora.rank > _MAX_SERVED_RANK:
        yield (
            f"model.lora.rank = {lora.rank} contradicts model.lora.broadcast = {lora.broadcast}: vLLM takes "
            f"adapters of rank {_MAX_SERVED_RANK} at most; set model.lora.broadcast: merged"
        )


def learners(model: ModelSection, training: TrainingSection, learner: LearnerSection) -> Iterator[str]:
    """What learners cannot do."""
    if learner.lr_schedule == "linear" and learner.lr_warmup_updates >= training.num_iterations:
        yield (
            f"learner.lr_warmup_updates = {learner.lr_warmup_updates} contradicts training.num_iterations = "
            f"{training.num_iterations}: the linear schedule would end before its warmup does"
        )
    if model.attention.startswith("flash_attention") and learner.num_gpus_per_learner == 0:
        yield (
            f"model.attention = {model.attention} contradicts learner.num_gpus_per_learner = 0: "
            "flash attention runs on GPUs only; use sdpa"
        )
    if model.attention.startswith("flash_attention") and model.dtype == "float32":
        yield (
            f"model.attention = {model.attention} contradicts model.dtype = float32: "
            "flash attention computes in bfloat16"
        )


def distillation(hindsight: HindsightSection, training: TrainingSection) -> Iterator[str]:
    """Groups that would be trained, but are filtered."""
    if hindsight.distills and training.filter_groups:
        yield (
            f"hindsight.objective = {hindsight.objective!r} contradicts training.filter_groups = true: "
            "distillation trains on groups without variance, too; set training.filter_groups: false"
        )


def repair(
    model: ModelSection,
    env: EnvSection,
    rollout: RolloutSection,
    training: TrainingSection,
    loss: LossSection,
    hindsight: HindsightSection,
) -> Iterator[str]:
    """Hinted rollouts that cannot be played, or not be trained."""
    if not hindsight.num_repaired:
        return
    key = f"hindsight.repair.num_rollouts = {hindsight.num_repaired}"
    if hindsight.num_repaired >= training.group_size:
        yield (
            f"{key} contradicts training.group_size = {training.group_size}: a rollout without a hint has to "
            "come before them"
        )
    if loss.truncated_importance_sampling_cap is None:
        yield (
            f"{key} contradicts loss.truncated_importance_sampling_cap = null: what was sampled with a hint "
            "is trained without it, with truncated importance weights; set a cap, such as 2.0"
        )
    if hindsight.max_context_length + rollout.max_response_length > model.max_model_len:
        yield (
            f"{key} contradicts model.max_model_len = {model.max_model_len}: the engine reads prompt and "
            f"hint, hindsight.max_context_length = {hindsight.max_context_length}, and answers with "
            f"rollout.max_response_length = {rollout.max_response_length}"
        )
    if env.plays_by_itself:
        yield f"{key} contradicts env.name = {env.name}: an agent makes its prompts itself"


def waits(hindsight: HindsightSection, training: TrainingSection) -> Iterator[str]:
    """Deadlines that come after one they should come before."""
    max_wait_s = hindsight.judge.max_wait_s
    if hindsight.enabled and judged_sources(hindsight.sources) and max_wait_s >= training.iteration_timeout_s:
        yield (
            f"hindsight.judge.max_wait_s = {max_wait_s:g} contradicts training.iteration_timeout_s = "
            f"{training.iteration_timeout_s:g}: the iteration would time out before it stops waiting"
        )


def held_out(env: EnvSection, evaluation: EvaluationSection) -> Iterator[str]:
    """Tasks that are trained on in an evaluation."""
    if evaluation.split == env.train_split:
        yield (
            f"evaluation.split = {evaluation.split!r} contradicts env.train_split = "
            f"{env.train_split!r}: the evaluation must be held out from training"
        )
