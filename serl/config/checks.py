"""Keys of an experiment that contradict each other; every sentence names both and says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from serl.config.sections import ExperimentConfig
from serl.config.wording import nearest_name
from serl.hindsight.judge_request import judged_sources
from serl.hindsight.sources import UnknownSourceError, evidence_source, source_names

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def check_config(config: ExperimentConfig) -> list[str]:
    """What must change before ``config`` can run; empty if nothing must."""
    return [
        *_lengths(config),
        *_sampling_and_loss(config),
        *_serving(config),
        *_weight_transfer(config),
        *_learners(config),
        *_hindsight(config),
        *_judge(config),
        *_evaluation(config),
    ]


def _lengths(config: ExperimentConfig) -> Iterator[str]:
    rollout, limit = config.rollout, config.model.max_model_len
    if rollout.max_prompt_length + rollout.max_response_length > limit:
        yield (
            f"rollout.max_prompt_length = {rollout.max_prompt_length} + rollout.max_response_length = "
            f"{rollout.max_response_length} contradicts model.max_model_len = {limit}: "
            "the longest prompt and response do not fit in the engine's context"
        )


def _sampling_and_loss(config: ExperimentConfig) -> Iterator[str]:
    if config.rollout.top_p < 1.0:
        yield (
            f"rollout.top_p = {config.rollout.top_p:g} contradicts loss.name = {config.loss.name}: the loss "
            "compares log-probabilities of the whole distribution; train with top_p = 1"
        )
    if 0.0 < config.loss.dual_clip <= 1.0:
        yield (
            f"loss.dual_clip = {config.loss.dual_clip:g}: must be greater than 1, a bound on the ratio of "
            "new to old probability where the advantage is negative, or 0 for no such bound"
        )
    if config.loss.name == "gspo" and config.loss.aggregation != "seq-mean-token-mean":
        yield (
            f"loss.name = gspo contradicts loss.aggregation = {config.loss.aggregation}: its ratio is one of "
            "whole responses, and all of them weigh the same; set loss.aggregation: seq-mean-token-mean"
        )


def _serving(config: ExperimentConfig) -> Iterator[str]:
    serving, scaling = config.serving, config.serving.autoscaling
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


def _weight_transfer(config: ExperimentConfig) -> Iterator[str]:
    serving, learner = config.serving, config.learner
    way = f"serving.weight_transfer = {serving.weight_transfer}"
    if serving.weight_transfer == "shared_memory":
        if serving.num_gpus_per_replica > 0:
            yield (
                f"{way} contradicts serving.num_gpus_per_replica = {serving.num_gpus_per_replica:g}: "
                "shared memory feeds replicas on the CPU; use nccl or ipc"
            )
        return
    for key, num_gpus in (
        ("serving.num_gpus_per_replica", serving.num_gpus_per_replica),
        ("learner.num_gpus_per_learner", learner.num_gpus_per_learner),
    ):
        if num_gpus == 0:
            yield f"{way} contradicts {key} = 0: it sends from GPU to GPU; use shared_memory on the CPU"
    if serving.weight_transfer == "nccl" and serving.autoscaling is not None:
        yield f"{way} contradicts serving.autoscaling: nccl needs a fixed number of replicas"


def _learners(config: ExperimentConfig) -> Iterator[str]:
    learner, model = config.learner, config.model
    if learner.num_learners > config.training.groups_per_batch:
        yield (
            f"learner.num_learners = {learner.num_learners} contradicts training.groups_per_batch = "
            f"{config.training.groups_per_batch}: groups are never split, so some learner would get none"
        )
    if learner.lr_schedule == "linear" and learner.lr_warmup_updates >= config.training.num_iterations:
        yield (
            f"learner.lr_warmup_updates = {learner.lr_warmup_updates} contradicts training.num_iterations = "
            f"{config.training.num_iterations}: the linear schedule would end before its warmup does"
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
    if not all(0.0 <= beta < 1.0 for beta in learner.betas):
        yield f"learner.betas = {list(learner.betas)}: both must be 0 or more and less than 1"


def _hindsight(config: ExperimentConfig) -> Iterator[str]:
    hindsight = config.hindsight
    if hindsight.enabled and not hindsight.sources:
        yield "hindsight.sources = [] contradicts hindsight.enabled = true: the teacher needs evidence"
    if hindsight.enabled and hindsight.max_context_length < config.rollout.max_prompt_length:
        yield (
            f"hindsight.max_context_length = {hindsight.max_context_length} contradicts "
            f"rollout.max_prompt_length = {config.rollout.max_prompt_length}: a prompt alone may be longer "
            "than prompt and evidence together may be"
        )
    for source in hindsight.sources:
        try:
            evidence_source(source)
        except UnknownSourceError:
            hint = nearest_name(source, source_names()) or f"; known: {', '.join(source_names())}"
            yield f"hindsight.sources has {source!r}: no such source{hint}"
        except (ImportError, ValueError) as error:  # the module is missing, or registers a name that is taken
            yield f"hindsight.sources has {source!r}: {error}"


def _judge(config: ExperimentConfig) -> Iterator[str]:
    hindsight, judge = config.hindsight, config.hindsight.judge
    judged = judged_sources(hindsight.sources)
    if judge.api_key_env is not None and not _VARIABLE.fullmatch(judge.api_key_env):
        # What was given is not quoted: it may be the key.
        yield (
            "hindsight.judge.api_key_env: must be the name of the environment variable that holds the key, "
            "in capitals, digits and '_'"
        )
    if not hindsight.enabled or not judged:
        return
    if len(judged) > 1:
        yield (
            f"hindsight.sources has {judged[0]}, which contradicts {judged[1]} beside it: "
            "a trajectory is judged once"
        )
    if judge.model is None or judge.base_url is None:
        keys = ("hindsight.judge.model", judge.model), ("hindsight.judge.base_url", judge.base_url)
        values = " and ".join(f"{key} = {'null' if value is None else '…'}" for key, value in keys)
        yield f"hindsight.sources has {judged[0]}, which contradicts {values}: a judge needs both"
    if judge.base_url is not None and (problem := _endpoint_problem(judge.base_url)):
        yield f"hindsight.judge.base_url: {problem}"
    if judge.reasoning_max_tokens < judge.max_tokens:
        yield (
            f"hindsight.judge.reasoning_max_tokens = {judge.reasoning_max_tokens} contradicts "
            f"hindsight.judge.max_tokens = {judge.max_tokens}: the second request must allow as many or more"
        )
    if judge.max_wait_s >= config.training.iteration_timeout_s:
        yield (
            f"hindsight.judge.max_wait_s = {judge.max_wait_s:g} contradicts training.iteration_timeout_s = "
            f"{config.training.iteration_timeout_s:g}: the iteration would time out before it stops waiting"
        )


def _endpoint_problem(base_url: str) -> str | None:
    """The value is not quoted: it may hold a password."""
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    else:
        if "@" in parts.netloc or parts.query:
            return "must hold neither user, password nor query; a key belongs in the variable of api_key_env"
    return None if usable else "must be an address such as https://host/v1"


def _evaluation(config: ExperimentConfig) -> Iterator[str]:
    if config.evaluation.split == config.env.train_split:
        yield (
            f"evaluation.split = {config.evaluation.split!r} contradicts env.train_split = "
            f"{config.env.train_split!r}: the evaluation must be held out from training"
        )
