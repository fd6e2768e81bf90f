"""That the private parts of Ray still are what `serl.private.ray_core` takes them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray import _raylet

from serl.private.ray_core import SEEN_IN, forget_token, loopback_is_the_nodes_address

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
