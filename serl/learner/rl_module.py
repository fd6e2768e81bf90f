"""Any Hugging Face causal language model as an RLlib module that scores sampled tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from serl.config.distill import Divergence
from serl.hindsight.distillation import TopTokens, divergences, top_tokens
from serl.learner.token_batch import Layout, TokenBatch
from serl.learner.token_scores import TokenScores, in_pieces, score_tokens
from serl.models.weights import empty_model, load_model
from serl.private.transformers import remembers_whole_prompts


class CausalLMModule(TorchRLModule):
    """A policy or a teacher.

    ``model_config``: ``model_dir`` (a local Hugging Face folder), ``attention``, ``temperature`` (that of the
    sampler), ``gradient_checkpointing``, ``entropy_gradient``, whether entropies have one, and ``empty``,
    whether parameters are without memory until they are sharded. Weights are float32, whatever precision a
    learner computes in. Dropout is off: with it a token's probability could not
    be compared with the sampler's.
    """

    def setup(self) -> None:
        config: dict[str, Any] = self.model_config  # type: ignore[assignment]
        self.temperature: float = config["temperature"]
        self.entropy_gradient: bool = config["entropy_gradient"]
        load = empty_model if config["empty"] else load_model
        self.model: Any = load(config["model_dir"], config["attention"])
        _turn_dropout_off(self.model)
        if config["gradient_checkpointing"]:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.layout: Layout = "packed" if config["attention"].startswith("flash_attention") else "padded"
        self.shares_prefix = self.layout == "padded" and remembers_whole_prompts(self.model)
        self._predictor_positions: Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep_predictors)
        last_mlp = _last_dense_mlp(self.model)
        if last_mlp is not None:
            last_mlp.register_forward_pre_hook(self._keep_predictors)
            last_mlp.register_forward_hook(self._put_predictors_back)

    @property
    def model_dir(self) -> Path:
        """The folder that the weights came from; configuration and tokenizer are there."""
        return Path(self.model_config["model_dir"])  # type: ignore[index]

    def _forward(self, batch: TokenBatch, **kwargs: Any) -> TokenScores:
        """Scores the N marked tokens of ``batch``.

        Logits exist only for the scored tokens, and so do the outputs of the last layer's MLP.
        """
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.prefix_ids is not None:
            cache = self._prefix_cache(batch.prefix_ids, batch.input_ids.shape[0])
            arguments |= {"past_key_values": cache, "use_cache": True}
        if batch.sequence_starts is not None:
            arguments |= _variable_length_arguments(batch.sequence_starts, batch.position_ids)
        self._predictor_positions = batch.predictor_positions
        try:
            logits = self.model(**arguments).logits
        finally:
            self._predictor_positions = None
        scores = score_tokens(logits, batch.targets, self.temperature, entropy_gradient=self.entropy_gradient)
        if batch.top_k:
            top = partial(top_tokens, k=batch.top_k, temperature=self.temperature)
            scores = scores._replace(top=TopTokens(*in_pieces(top, logits)))
        if (compared := batch.comparison) is not None:
            apart = partial(_divergences, temperature=self.temperature, kind=compared.divergence)
            (own,) = in_pieces(apart, logits[compared.places], *compared.teacher)
            scores = scores._replace(divergences=own)
        return scores

    def _prefix_cache(self, prefix_ids: Tensor, num_rows: int) -> Any:
        """Keys and values of the shared prefix for every row; gradients flow back through them."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model.get_decoder()(input_ids=prefix_ids, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(num_rows)
        return cache

    def _keep_predictors(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Lets a module see only the hidden states that predict a scored token, [N, width]."""
        if self._predictor_positions is None:
            return arguments
        (hidden,) = arguments
        self._hidden_shape = hidden.shape
        return (hidden.flatten(0, 1)[self._predictor_positions],)

    def _put_predictors_back(self, mlp: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The last layer's MLP output in its full shape; nobody reads the other positions, which are 0."""
        if self._predictor_positions is None:
            return output
        whole = output.new_zeros(self._hidden_shape.numel() // output.shape[-1], output.shape[-1])
        return whole.index_copy(0, self._predictor_positions, output).view(self._hidden_shape)


def _divergences(
    logits: Tensor, ids: Tensor, logprobs: Tensor, temperature: float, kind: Divergence
) -> tuple[Tensor]:
    return (divergences(logits, TopTokens(ids, logprobs), temperature, kind),)


def _last_dense_mlp(model: Any) -> nn.Module | None:
    """The MLP after the last attention: from there on every position is on its own.

    None for experts, which may look at all tokens at once, and for checkpointed layers, which run again when
    the positions are forgotten.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None or model.is_gradient_checkpointing:
        return None
    mlp = getattr(layers[-1], "mlp", None)
    return mlp if mlp is not None and not any("expert" in name for name, _ in mlp.named_modules()) else None


def _variable_length_arguments(sequence_starts: Tensor, position_ids: Tensor | None) -> dict[str, Any]:
    starts = sequence_starts.to(torch.int32)
    longest = int(starts.diff().max())
    return {
        "position_ids": position_ids,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _turn_dropout_off(model: Any) -> None:
    for module in model.modules():
        for rate in ("p",) if isinstance(module, nn.Dropout) else ("attention_dropout",):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
