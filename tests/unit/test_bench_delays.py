"""Environments that keep episodes waiting for a benchmark."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import pytest

from envs.registry import make_provider
from serl.config.load import load_experiment
from tools.bench.delays import DelayedProvider, delayed

EXPERIMENT = load_experiment(Path("experiments/quickstart.yaml"), [])


def _provider(step_s: float, sigma: float) -> DelayedProvider:
    env = delayed(EXPERIMENT, step_s, sigma).env
    provider = make_provider(env.name, env.args)
    assert isinstance(provider, DelayedProvider)
    return provider


def test_a_delayed_environment_plays_the_games_that_it_stands_before():
    inner = make_provider(EXPERIMENT.env.name, EXPERIMENT.env.args)
    provider = _provider(step_s=1e-6, sigma=0.0)
    assert provider.task_set("train") == inner.task_set("train")
    task = inner.task_set("train").tasks[0]
    own, others = provider.make_env(), inner.make_env()
    assert own.blocking and not others.blocking
    for env in (own, others):
        env.reset(options={"task_id": task.task_id})
    assert own.step("look") == others.step("look")


def test_an_episode_draws_its_delay_once_log_normal_around_the_median():
    provider = _provider(step_s=2.0, sigma=1.5)
    env = provider.make_env()
    task_id = provider.task_set("train").tasks[0].task_id
    delays = []
    for _ in range(400):
        env.reset(options={"task_id": task_id})
        delays.append(env.delay_s)
    logarithms = [math.log(delay / 2.0) for delay in delays]
    # Of 400 draws the median is within 4 standard errors, 1.25 · 1.5 / 20 each, and so is the deviation.
    assert abs(median(logarithms)) < 0.4
    assert math.sqrt(sum(x * x for x in logarithms) / 400) == pytest.approx(1.5, abs=0.25)


def test_without_a_spread_all_episodes_are_equally_slow():
    env = _provider(step_s=0.25, sigma=0.0).make_env()
    env.reset(options={"task_id": _provider(1.0, 0.0).task_set("train").tasks[0].task_id})
    assert env.delay_s == 0.25
