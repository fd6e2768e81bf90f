"""A test's tier is the marker of the folder it lies in; below, what several files of tests need."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serl.rollout.prompt import PromptEncoder

TESTS = Path(__file__).parent
TIERS = ("unit", "integration", "system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder not in TIERS:
            raise pytest.UsageError(f"{item.path} lies in none of the tiers: {', '.join(TIERS)}.")
        item.add_marker(folder)


def pytest_collection_finish() -> None:
    """What tests import stays; looking for garbage among it again and again takes minutes of the suite."""
    gc.collect()
    gc.freeze()


# What a fixture needs is imported in it: the unit tier should not wait for Ray.


@pytest.fixture(scope="module", autouse=True)
def registrations_of_one_file() -> Iterator[None]:
    """What a file registers of its own, no other file finds: a wrong name's hint lists every entry."""
    from serl.config.registry import ESTIMATORS, LOSSES, SOURCES

    yield
    for registry in (ESTIMATORS, LOSSES, SOURCES):
        for name, entry in list(registry._entries.items()):
            if not entry.function.__module__.startswith("serl."):
                del registry._entries[name]
                sys.modules.pop(entry.function.__module__, None)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random policy with a byte tokenizer. Tests only read it."""
    from learner_helpers import save_tiny_policy

    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def encoder() -> PromptEncoder:
    """Prompts in a tokenizer of one id per byte."""
    from rollout_helpers import byte_tokenizer

    from serl.rollout.prompt import PromptEncoder

    return PromptEncoder(byte_tokenizer())


@pytest.fixture(scope="module")
def env_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for environments that block."""
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster for one file. Its CPUs are a number: enough for two learners or a deployment."""
    import ray

    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Where other processes compute too, or the model is small, a second thread of torch only waits."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
