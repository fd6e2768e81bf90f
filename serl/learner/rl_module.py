"""Any Hugging Face causal language model as an RLlib module that scores sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from serl.config import ExperimentConfig, LoRASection
from serl.config.distill import Divergence
from serl.hindsight.distillation import TopTokens, divergences, top_tokens
from serl.hindsight.schedules import has_teacher_copy
from serl.learner.token_batch import Layout, TokenBatch
from serl.learner.token_scores import TokenScores, in_pieces, score_tokens
from serl.learner.token_tree import TokenTree
from serl.learner.tree_attention import (
    Branches,
    ScaledDotProduct,
    VariableLength,
    tree_attention,
)
from serl.models.lora import adapter_weights, add_adapters
from serl.models.resolve import is_hub_id
from serl.models.weights import cast_parameters, empty_model, load_model, named_weights
from serl.no_pickles import NoPickles
from serl.private.transformers import attends_to_all_before, attention_implementation

# The adapters that a model may have.
POLICY, TEACHER = "policy", "teacher"


def module_config(experiment: ExperimentConfig, model_dir: str) -> dict[str, Any]:
    """The ``model_config`` of a `CausalLMModule` with the policy in the local folder ``model_dir``."""
    return {
        "model_dir": model_dir,
        "hub_id": experiment.model.path if is_hub_id(experiment.model.path) else None,
        "attention": experiment.model.attention,
        "lora": experiment.model.lora,
        "has_teacher_adapters": has_teacher_copy(experiment.hindsight),
        "dtype": experiment.model.dtype,
        "seed": experiment.seed,
        "temperature": experiment.rollout.temperature,
        "gradient_checkpointing": experiment.learner.gradient_checkpointing,
        "entropy_gradient": experiment.loss.entropy_coefficient > 0.0,
        "empty": experiment.learner.num_learners > 1,
    }


def build_model(config: Mapping[str, Any], empty: bool) -> Any:
    """The model in ``model_dir``, a local Hugging Face folder, with the ``attention``; ``empty``: no memory.

    With ``lora`` it has adapters, those of a teacher too if ``has_teacher_adapters``, drawn from ``seed``;
    its own weights, which nobody trains then, have the ``dtype`` that learners compute in.
    """
    model = (empty_model if empty else load_model)(config["model_dir"], config["attention"])
    if config["lora"] is not None:
        cast_parameters(model, getattr(torch, config["dtype"]))
        adapters = (POLICY, TEACHER) if config["has_teacher_adapters"] else (POLICY,)
        add_adapters(model, config["lora"], adapters, config["seed"])
    return model


class CausalLMModule(NoPickles, TorchRLModule):
    """A policy or a teacher.

    ``model_config``: that of `build_model`, ``temperature`` (that of the sampler),
    ``gradient_checkpointing``, ``entropy_gradient``, whether entropies have one, and ``empty``,
    whether parameters are without memory until they are sharded. Trained weights are float32, whatever
    precision a learner computes in. Dropout is off: with it a token's probability could not
    be compared with the sampler's.
    """

    def setup(self) -> None:
        config: dict[str, Any] = self.model_config  # type: ignore[assignment]
        self.temperature: float = config["temperature"]
        self.entropy_gradient: bool = config["entropy_gradient"]
        self.model: Any = build_model(config, config["empty"])
        _turn_dropout_off(self.model)
        if config["gradient_checkpointing"]:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._attention = attention_implementation(self.model)
        as_tree = self._attention != "eager" and attends_to_all_before(self.model)
        self.lay_out("tree" if as_tree else "padded")
        self._batch: TokenBatch | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep_scored)
        last = _LastLayer.of(self.model)
        for part in last.token_wise:
            part.register_forward_pre_hook(self._keep_predictors)
            part.register_forward_hook(self._put_predictors_back)
        if last.attention is not None and self._attention == "sdpa":
            last.attention.register_forward_pre_hook(self._ask_for_predictors, with_kwargs=True)

    @property
    def model_dir(self) -> Path:
        """The folder that the weights came from; configuration and tokenizer are there."""
        return Path(self.model_config["model_dir"])  # type: ignore[index]

    @property
    def name(self) -> str:
        """Under which others find what the weights came from: of the hub, or the local folder."""
        return self.model_config["hub_id"] or str(self.model_dir)  # type: ignore[index]

    @property
    def lora(self) -> LoRASection | None:
        """Of the adapters that are trained; None: all weights are."""
        return self.model_config["lora"]  # type: ignore[index]

    def trained_weights(self) -> dict[str, Tensor]:
        """What training changes, by the names of Hugging Face's and PEFT's files."""
        if self.lora is None:
            return named_weights(self.model)
        return adapter_weights(self.model, POLICY)

    def lay_out(self, layout: Layout) -> None:
        """Expects batches of this ``layout`` from now on."""
        self.layout: Layout = layout
        self.model.set_attn_implementation(tree_attention() if layout == "tree" else self._attention)

    def _forward(self, batch: TokenBatch, **kwargs: Any) -> TokenScores:
        """Scores the N marked tokens of ``batch``.

        Logits exist only for the scored tokens, and after its keys and values the last layer computes nothing
        but what predicts them.
        """
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.tree is not None:
            device = batch.input_ids.device
            positions = torch.from_numpy(batch.tree.positions).to(device)
            arguments |= {"position_ids": positions[None], "branches": self._branches(batch.tree, device)}
        self._batch = batch
        self._predictors = torch.from_numpy(batch.predictors).to(batch.input_ids.device)
        try:
            logits = self.model(**arguments).logits
        finally:
            self._batch = None
        scores = score_tokens(logits, batch.targets, self.temperature, entropy_gradient=self.entropy_gradient)
        if batch.top_k:
            top = partial(top_tokens, k=batch.top_k, temperature=self.temperature)
            scores = scores._replace(top=TopTokens(*in_pieces(top, logits)))
        if (compared := batch.comparison) is not None:
            apart = partial(_divergences, temperature=self.temperature, kind=compared.divergence)
            (own,) = in_pieces(apart, logits[compared.places], *compared.teacher)
            scores = scores._replace(divergences=own)
        return scores

    def _branches(self, tree: TokenTree, device: torch.device) -> Branches:
        if self._attention == "sdpa":
            return ScaledDotProduct.of(tree, device)
        return VariableLength.of(tree, device, self._attention)

    def _keep_scored(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Lets the LM head see only the hidden states that predict the scored tokens, [N, width]."""
        if self._batch is None:
            return arguments
        return (arguments[0].flatten(0, 1)[self._batch.predictor_positions],)

    def _keep_predictors(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Lets a module see only the predictors' hidden states, each once."""
        if self._batch is None:
            return arguments
        (hidden,) = arguments
        self._hidden_shape = hidden.shape
        return (hidden.flatten(0, 1)[self._predictors],)

    def _ask_for_predictors(
        self, attention: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Lets the last layer attend from the predictors alone.

        Without any it attends as ever: a sharded weight must have a gradient on every learner, if of zeros.
        """
        if self._batch is None or self._batch.tree is None or not len(self._batch.predictors):
            return None
        device = self._batch.input_ids.device
        branches = ScaledDotProduct.of(self._batch.tree, device, self._batch.predictors)
        return arguments, options | {"branches": branches}

    def _put_predictors_back(self, part: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A module's output in its full shape; nobody reads the other positions, which are 0."""
        if self._batch is None:
            return output
        whole = output.new_zeros(self._hidden_shape.numel() // self._hidden_shape[-1], output.shape[-1])
        return whole.index_copy(0, self._predictors, output).unflatten(0, self._hidden_shape[:-1])


def _divergences(
    logits: Tensor, ids: Tensor, logprobs: Tensor, temperature: float, kind: Divergence
) -> tuple[Tensor]:
    return (divergences(logits, TopTokens(ids, logprobs), temperature, kind),)


class _LastLayer(NamedTuple):
    """Of a model's last layer what may compute for some tokens alone.

    After its keys and values every token is on its own.
    """

    attention: nn.Module | None = None
    token_wise: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, model: Any) -> _LastLayer:
        """Nothing of checkpointed layers, which run again when the predictors are forgotten."""
        layers = getattr(model.get_decoder(), "layers", None)
        if layers is None or model.is_gradient_checkpointing:
            return cls()
        attention, mlp = getattr(layers[-1], "self_attn", None), getattr(layers[-1], "mlp", None)
        parts = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
        # Experts may look at all tokens at once.
        if mlp is not None and not any("expert" in name for name, _ in mlp.named_modules()):
            parts.append(mlp)
        return cls(attention, tuple(part for part in parts if part is not None))


def _turn_dropout_off(model: Any) -> None:
    for module in model.modules():
        for rate in ("p",) if isinstance(module, nn.Dropout) else ("attention_dropout",):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
