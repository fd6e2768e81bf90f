"""That the private parts of Ray still are what `serl.private.ray_core` takes them for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import _raylet
from ray._private.ray_constants import DEFAULT_RUNTIME_ENV_DIR_NAME
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.runtime_env.runtime_env import _merge_runtime_env

from serl.private.ray_core import (
    SEEN_IN,
    forget_token,
    loopback_is_the_nodes_address,
    started_its_cluster,
    variables_of_submitted_job,
)
from serl.run.preflight.output import RUNTIME_RESOURCES

CONTRACT = f"seen in Ray {SEEN_IN}, this is {ray.__version__}"


def test_a_node_that_starts_meanwhile_has_a_loopback_address():
    before = ray.util.get_node_ip_address()
    with loopback_is_the_nodes_address():
        assert ray.util.get_node_ip_address() == "127.0.0.1", CONTRACT
    assert ray.util.get_node_ip_address() == before


def test_a_token_is_read_anew_from_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raylet: Any = _raylet
    loader = raylet.AuthenticationTokenLoader.instance()
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for token in ("a" * 64, "b" * 64):
        (tmp_path / token).write_text(token)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / token))
        forget_token()
        assert loader.get_raw_token(ignore_auth_mode=True) == token, CONTRACT
    monkeypatch.undo()
    forget_token()


def test_variables_that_a_job_was_submitted_with_are_known_and_refused_a_second_time(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert variables_of_submitted_job() == set(), CONTRACT
    submitted: Any = {"working_dir": "gcs://package.zip", "env_vars": {"HF_HOME": "/cache"}}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"runtime_env": submitted, "metadata": {}}))
    assert variables_of_submitted_job() == {"HF_HOME"}, CONTRACT
    again: Any = {"env_vars": {"HF_HOME": "/cache"}}
    assert _merge_runtime_env(submitted, again) is None, CONTRACT


def test_what_ray_unpacks_for_jobs_is_known_by_its_folder():
    assert RUNTIME_RESOURCES == DEFAULT_RUNTIME_ENV_DIR_NAME, CONTRACT


def test_a_process_without_ray_has_started_no_cluster():
    assert not started_its_cluster(), CONTRACT
