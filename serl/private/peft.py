"""Private parts of Hugging Face PEFT, as seen in version 0.21.2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SEEN_IN = "0.21.2"


def compute_in_input_dtype(model: Any) -> None:
    """Inputs of adapters stay as they are: autocast, or FSDP, has the adapters' weights in the same dtype.

    PEFT would keep a float32 copy of each for the backward pass; its own switch for that is a context.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False


def select_adapter(model: Any, adapter: str | None) -> None:
    """From now on ``model`` answers with this of its adapters, or, without a name, as if it had none.

    PEFT's own `set_adapter` also makes the parameters of that adapter trainable and those of all others not,
    which an optimizer, or shards of FSDP, would not survive.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]


@contextmanager
def selected_adapter(model: Any, adapter: str | None, afterwards: str) -> Iterator[None]:
    """`select_adapter` for a while."""
    select_adapter(model, adapter)
    try:
        yield
    finally:
        select_adapter(model, afterwards)
