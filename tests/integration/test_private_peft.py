"""That the private parts of PEFT still are what `serl.private.peft` takes them for."""

from __future__ import annotations

import peft
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from serl.private.peft import SEEN_IN, selected_adapter

CONTRACT = f"seen in PEFT {SEEN_IN}, this is {peft.__version__}"


def test_an_adapter_is_selected_for_a_while_and_parameters_stay_trainable_or_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["0"])
    for number, name in enumerate(("first", "second"), start=1):
        inject_adapter_in_model(config, model, name)
        nn.init.constant_(model[0].lora_A[name].weight, 1.0)  # type: ignore[union-attr,index]
        nn.init.constant_(model[0].lora_B[name].weight, float(number))  # type: ignore[union-attr,index]
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    ones = torch.ones(1, 3)
    base = model[0].base_layer(ones)  # type: ignore[operator]
    for name, added in (("first", 3.0), (None, 0.0), ("second", 6.0)):
        with selected_adapter(model, name, afterwards="first"):
            torch.testing.assert_close(model(ones), base + added, msg=CONTRACT)
        torch.testing.assert_close(model(ones), base + 3.0, msg=CONTRACT)
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert now == trainable, CONTRACT
