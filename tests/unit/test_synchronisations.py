"""What counts as a wait of the host for its device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tools.bench.synchronisations import HostSynchronisations


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda values: float(values.sum()), 1),
        (lambda values: bool(values.isfinite().all()), 1),
        (lambda values: values.tolist(), 1),
        (lambda values: values.cpu().numpy(), 2),
        (lambda values: values[values > 1.0], 1),
        (lambda values: values.nonzero(), 1),
        (lambda values: values[torch.tensor([0, 2])], 0),
        (lambda values: torch.where(values > 1.0, values, 0.0).sum(), 0),
        (lambda values: int(values.max()) + int(values.min()), 2),
    ],
)
def test_what_reaches_python_is_counted(call: Callable[[Tensor], object], number: int):
    values = torch.tensor([1.0, 2.0, 3.0])
    with HostSynchronisations() as counted:
        call(values)
    float(values[0])
    assert counted.number == number
