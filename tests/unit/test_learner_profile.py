"""How a learner's profile is read: kinds of operations, and how much a matrix product computes."""

from __future__ import annotations

import pytest
import torch

from tools.bench.learner_profile import (
    ATTENTION,
    AUTOGRAD,
    COPIES,
    ELEMENTWISE,
    HEAD,
    MATRICES,
    OPTIMIZER,
    PYTHON,
    Operation,
    Profile,
    kind_of,
    num_operations,
    profiled,
)

VOCABULARY = 823


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mm", [[40, 128], [128, 384]], MATRICES),
        ("aten::mm", [[40, 128], [128, VOCABULARY]], HEAD),
        ("aten::_log_softmax", [[40, VOCABULARY]], HEAD),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [[1, 4, 40, 32]], ATTENTION),
        ("aten::index_select", [[40, 128], [], [9]], COPIES),
        ("aten::copy_", [[40, 128], [40, 128]], COPIES),
        ("aten::mul", [[40, 128], [40, 128]], ELEMENTWISE),
        ("aten::_fused_adamw_", [[], []], OPTIMIZER),
        ("MulBackward0", [], AUTOGRAD),
    ],
)
def test_the_kind_of_an_operation(name: str, shapes: list[list[int]], kind: str):
    assert kind_of(Operation(name, shapes, 1.0), VOCABULARY) == kind


@pytest.mark.parametrize(
    ("name", "shapes", "operations"),
    [
        ("aten::mm", [[2, 3], [3, 5]], 2 * 2 * 3 * 5),
        ("aten::addmm", [[5], [2, 3], [3, 5], [], []], 2 * 2 * 3 * 5),
        ("aten::bmm", [[7, 2, 3], [7, 3, 5]], 7 * 2 * 2 * 3 * 5),
    ],
)
def test_a_product_multiplies_and_adds_once_for_every_pair_of_factors(
    name: str, shapes: list[list[int]], operations: int
):
    assert num_operations(Operation(name, shapes, 1.0)) == operations


def test_what_no_operation_took_is_pythons():
    operations = [
        Operation("aten::mm", [[2, 3], [3, 5]], 3.0),
        Operation("aten::mm", [[2, 3], [3, VOCABULARY]], 1.0),
        Operation("aten::mul", [[2, 3]], 2.0),
    ]
    found = Profile.of(operations, seconds=8.0, vocabulary=VOCABULARY)
    assert found.by_kind == {MATRICES: 3.0, HEAD: 1.0, ELEMENTWISE: 2.0, PYTHON: 2.0}
    assert found.share(PYTHON) == 0.25
    assert found.product_seconds == 4.0 and found.products == 2 * 2 * 3 * (5 + VOCABULARY)


def test_a_real_product_is_found_with_its_backward_pass():
    left, right = torch.rand(2, 3, requires_grad=True), torch.rand(3, 5, requires_grad=True)
    found = profiled(lambda: (left @ right).sum().backward(), VOCABULARY)
    # Backward has a product for the gradient of each factor.
    assert found.products == 3 * 2 * 2 * 3 * 5
    assert sum(found.by_kind.values()) == pytest.approx(found.seconds)
