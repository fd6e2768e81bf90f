"""SERL as RLlib's users use it: built by setters, trained, evaluated, saved, restored and tuned."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import serve, tune
from ray.tune.schedulers import ASHAScheduler
from safetensors.torch import load_file

from serl.algorithm import SERL, SERLConfig
from serl.run.metrics_reference import undescribed

RETURN = "env_runners/episode_return_mean"


def small(output_dir: Path) -> SERLConfig:
    """The quickstart's policy on its games, as little of it as shows every part."""
    return (
        SERLConfig()
        .rl_module(model_config={"path": "embedded:tiny_alfworld", "max_model_len": 512})
        .environment("alfworld", env_config={"data": "embedded", "max_receptacles": 6})
        .env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
        .training(lr=1e-3)
        .evaluation(evaluation_interval=2, evaluation_duration=6)
        .debugging(seed=3)
        .sections(
            name="rllib",
            output_dir=str(output_dir),
            env={"max_steps": 5},
            rollout={"max_prompt_length": 400, "max_response_length": 32},
            serving={"num_cpus_per_replica": 0.5},
            training={"num_iterations": 3, "group_size": 4, "groups_per_batch": 2},
        )
    )


def check_that_nothing_is_served() -> None:
    """Applications end shortly after their trial."""
    deadline = time.monotonic() + 60.0
    while serve.status().applications:
        assert time.monotonic() < deadline, serve.status().applications
        time.sleep(0.5)


def flat(result: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in result.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_an_algorithm_trains_evaluates_is_saved_and_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"

    def on_train_result(*, algorithm: SERL, result: dict[str, Any], **info: Any) -> None:
        # The config travels with it, to processes that have not this module.
        with told.open("a") as file:
            file.write(f"{len(algorithm.last_recorded)} {result['env_runners']['episode_return_mean']}\n")

    def on_evaluate_end(*, evaluation_metrics: dict[str, Any], **info: Any) -> None:
        evaluation_metrics["seen"] = 1

    config = small(tmp_path).callbacks(on_train_result=on_train_result, on_evaluate_end=on_evaluate_end)
    algorithm = config.build_algo()
    assert isinstance(algorithm, SERL)
    try:
        first, second = algorithm.train(), algorithm.train()
        for result in (first, second):
            metrics = flat(result)
            logged = algorithm.iteration_metrics if result is second else {}
            assert {name: metrics[name] for name in logged} == logged
            assert undescribed(logged) == []
            assert {RETURN, "env_runners/episode_len_mean", "env_runners/num_episodes"} <= metrics.keys()
            assert metrics["learners/default_policy/total_loss"] == metrics["learner/loss"]
        assert [one["training_iteration"] for one in (first, second)] == [1, 2]
        steps = [one["num_env_steps_sampled_lifetime"] for one in (first, second)]
        assert 8 <= steps[0] <= steps[1]  # the batch of the second may be complete before the first ends
        assert first["learners"]["default_policy"]["default_optimizer_learning_rate"] == 1e-3
        assert "evaluation" not in first and not second["done"]
        evaluation = second["evaluation"]
        assert evaluation["env_runners"]["num_episodes"] == 6 and evaluation["seen"] == 1
        assert evaluation["env_runners"]["episode_return_mean"] >= 0.0
        assert told.read_text().splitlines() == [f"8 {flat(one)[RETURN]}" for one in (first, second)]
        module = algorithm.get_module()
        assert module is not None and algorithm.get_module("another") is None
        weights = {name: weight.detach().clone() for name, weight in module.model.named_parameters()}  # pyright: ignore
        folder = Path(algorithm.save_to_path())
    finally:
        algorithm.stop()
    assert folder == algorithm.run_dir / "checkpoints" / "iteration_000002"
    assert algorithm.run_dir.parent == tmp_path and algorithm.run_dir.name.startswith("rllib-")
    saved = load_file(folder / "policy" / "model.safetensors")
    assert all(bool((weights[name] == weight).all()) for name, weight in saved.items())

    restored = SERL.from_checkpoint(folder)
    try:
        assert (restored.weights_seq_no, restored.iteration) == (2, 2)
        assert restored.experiment == algorithm.experiment
        third = restored.train()
        assert (third["training_iteration"], third["done"]) == (3, True)
        assert third["num_env_steps_sampled_lifetime"] > steps[1]
    finally:
        restored.stop()


def test_tune_searches_stops_trials_and_goes_on_after_a_failure(ray_cluster: None, tmp_path: Path) -> None:
    marker = tmp_path / "failed"

    def fails_once(*, algorithm: SERL, result: dict[str, Any], **info: Any) -> None:
        if algorithm.weights_seq_no == 2:
            with suppress(FileExistsError):
                marker.touch(exist_ok=False)
                raise OSError("a node of the cluster is gone")

    space = small(tmp_path).training(lr=tune.grid_search([1e-3, 1e-4])).callbacks(on_train_result=fails_once)
    tuner = tune.Tuner(
        SERL,
        param_space=space.sections(evaluation={"interval": 0}, training={"num_iterations": 2}),  # pyright: ignore[reportArgumentType]
        tune_config=tune.TuneConfig(
            metric=RETURN,
            mode="max",
            scheduler=ASHAScheduler(max_t=2, grace_period=2),
            max_concurrent_trials=2,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(tmp_path / "tune"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        ),
    )
    results = tuner.fit()
    check_that_nothing_is_served()
    assert len(results.errors) == 1 and "a node of the cluster is gone" in str(results.errors[0])
    tuner = tune.Tuner.restore(str(tmp_path / "tune" / "search"), SERL, resume_errored=True)
    results = tuner.fit()
    check_that_nothing_is_served()
    assert [result.metrics["training_iteration"] for result in results] == [2, 2]  # pyright: ignore
    rates = [one.metrics["learners"]["default_policy"]["default_optimizer_learning_rate"] for one in results]  # pyright: ignore
    assert sorted(rates) == [1e-4, 1e-3]
    best = results.get_best_result()
    assert best.checkpoint is not None and best.config is not None
    assert best.config["experiment"]["learner"]["lr"] in rates
    recorded = SERLConfig.from_yaml(Path(best.checkpoint.path) / "config.yaml").experiment
    assert recorded.learner.lr == best.config["experiment"]["learner"]["lr"]
