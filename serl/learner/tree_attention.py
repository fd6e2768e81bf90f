"""Attention of the tokens of a tree to their ancestors, as an attention implementation of transformers.

A branch's tokens are queries, all tokens on the way from the root down to them its keys: what the branch
grows from is copied beside it. A token of the branch then attends to a beginning of its branch's keys, as in
any causal attention, and no two tokens of different branches ever meet in one score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serl.batch.rows import Array
from serl.learner.token_tree import TokenTree
from serl.private.flash_attention import variable_length_attention

_NAME = "serl_token_tree"

# Scores computed in vain, of all in one call, from which branches are scored in one more call.
_MAX_WASTE = 0.3


class Branches(Protocol):
    """The branches of one tree, as one kind of kernel takes them."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """What each of N tokens attends to, [N, heads, width], of tensors [N, heads, width].

        Keys and values may have fewer heads, each for as many of the query's.
        """
        ...


def tree_attention() -> str:
    """transformers' name for attention by `Branches`, which a model's callers give it as ``branches``."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_NAME, _attend)
    return _NAME


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    branches: Branches,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: tensors [1, heads, N, width], attended to [1, N, heads, width]."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise NotImplementedError(
            f"{type(module).__name__} attends with {' and '.join(unknown)}, which trees of tokens do not "
            "know; set model.attention: eager"
        )
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return branches.attend(query, key, value, scaling)[None], None


@dataclass(frozen=True, slots=True)
class SideBySide:
    """G branches in one call, filled up to Q queries and K keys: places of tokens [G, Q] and [G, K].

    ``mask`` [G, 1, Q, K] is true where a query attends to a key. None: ``keys`` are the queries, in order.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, tree: TokenTree, branches: Sequence[Array], asked: Sequence[Array], device: Any) -> Self:
        """``asked[g]``: at which tokens of the branch ``branches[g]`` it is asked what they attend to."""
        keys = torch.from_numpy(_filled_up(branches)).to(device)
        if all(len(queries) == len(path) for queries, path in zip(asked, branches, strict=True)):
            return cls(keys, keys, None)
        queries = _filled_up(asked)
        depths = torch.from_numpy(tree.positions[queries]).to(device)
        mask = torch.arange(keys.shape[1], device=device) <= depths[:, :, None]
        return cls(torch.from_numpy(queries).to(device), keys, mask[:, None])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[G · Q, heads, width]."""
        attended = scaled_dot_product_attention(
            _gathered(query, self.queries),
            _gathered(key, self.keys),
            _gathered(value, self.keys),
            attn_mask=self.mask,
            is_causal=self.mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class ScaledDotProduct:
    """For PyTorch's own attention: ``calls`` of branches of similar size.

    Of what they attend to, one after another, ``found`` belongs to the tokens at ``places``, in their order;
    with ``places`` None to all of them.
    """

    calls: tuple[SideBySide, ...]
    found: Tensor
    places: Tensor | None

    @classmethod
    def of(cls, tree: TokenTree, device: torch.device, places: Array | None = None) -> Self:
        """Asked at the tokens at ``places``, which ascend, or at all of them; at others the answer is 0."""
        asked = (
            tree.own_places
            if places is None
            else np.split(places, np.searchsorted(places, tree.starts[1:-1]))
        )
        rows: list[Array] = [np.empty(0, np.int64)] * len(asked)
        calls: list[SideBySide] = []
        num_before = 0
        for chosen in similar_branches([*map(len, asked)], [*map(len, tree.branches)]):
            of_call = [asked[branch] for branch in chosen]
            calls.append(SideBySide.of(tree, [tree.branches[branch] for branch in chosen], of_call, device))
            for index, branch in enumerate(chosen):
                rows[branch] = num_before + index * calls[-1].queries.shape[1] + np.arange(len(asked[branch]))
            num_before += calls[-1].queries.numel()
        found = torch.from_numpy(np.concatenate(rows)).to(device)
        return cls(tuple(calls), found, None if places is None else torch.from_numpy(places).to(device))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        calls = torch.cat([call.attend(query, key, value, scaling) for call in self.calls])
        attended = _taken(calls, self.found)
        if self.places is None:
            return attended
        return attended.new_zeros(len(query), *attended.shape[1:]).index_copy(0, self.places, attended)


@dataclass(frozen=True, slots=True)
class VariableLength:
    """For flash attention, which takes branches of any length one after another.

    ``keys``: the places of every branch's keys. ``query_starts`` and ``key_starts`` [B + 1] (int32).
    """

    implementation: str
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, tree: TokenTree, device: torch.device, implementation: str) -> Self:
        lengths = [*map(len, tree.branches)]

        def on_device(values: Array, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(values).to(device, dtype)

        return cls(
            implementation=implementation,
            keys=on_device(np.concatenate(tree.branches), torch.int64),
            query_starts=on_device(tree.starts, torch.int32),
            key_starts=on_device(np.concatenate(([0], np.cumsum(lengths))), torch.int32),
            longest_query=int(np.diff(tree.starts).max()),
            longest_key=max(lengths),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        return variable_length_attention(
            query,
            key[self.keys],
            value[self.keys],
            scaling=scaling,
            implementation=self.implementation,
            query_starts=self.query_starts,
            key_starts=self.key_starts,
            longest_query=self.longest_query,
            longest_key=self.longest_key,
        )


def similar_branches(num_queries: Sequence[int], num_keys: Sequence[int]) -> list[list[int]]:
    """Branches with queries in lists of similar size; those that need no mask, a query a key, apart."""
    lists: list[list[int]] = []
    sizes = [(queries != keys, keys, queries) for queries, keys in zip(num_queries, num_keys, strict=True)]
    masked, num_scores, most_keys, most_queries = False, 0, 0, 0
    for branch in sorted(range(len(sizes)), key=sizes.__getitem__):
        is_masked, keys, queries = sizes[branch]
        if not queries:
            continue
        num_scores += queries * keys
        most_keys, most_queries = max(most_keys, keys), max(most_queries, queries)
        computed = (len(lists[-1]) + 1) * most_keys * most_queries if lists else 0
        if not lists or is_masked != masked or num_scores < (1.0 - _MAX_WASTE) * computed:
            lists.append([])
            masked, num_scores, most_keys, most_queries = is_masked, queries * keys, keys, queries
        lists[-1].append(branch)
    return lists


def _filled_up(lists: Sequence[Array]) -> Array:
    """[G, longest]; what is filled up is never asked for."""
    lengths = np.array([*map(len, lists)])
    filled = np.zeros((len(lists), lengths.max()), dtype=np.int64)
    filled[np.arange(filled.shape[1]) < lengths[:, None]] = np.concatenate(lists)
    return filled


def _gathered(tokens: Tensor, places: Tensor) -> Tensor:
    """Of tokens [N, heads, width] those at ``places`` [G, length]: [G, heads, length, width]."""
    return _taken(tokens, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def _taken(tokens: Tensor, places: Tensor) -> Tensor:
    # Of rows, which are contiguous, gradients are summed several times faster than of blocks.
    return tokens.flatten(1).index_select(0, places).unflatten(1, tokens.shape[1:])
