"""Watched namespaces: which of them the operator may watch, and the error message without a cluster."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support import fake_time
from support.fake_time import eventually
from yolojob_operator.kopf_app import watched_namespaces
from yolojob_operator.kube.api_client import ApiError


class Server:
    """An API server that allows listing in some namespaces, and may be down."""

    def __init__(self, *visible: str) -> None:
        self.visible, self.down, self.requests = set(visible), False, 0

    async def versions(self, _: str, namespaces: Iterable[str]) -> dict[str, int]:
        self.requests += 1
        if self.down:
            raise ApiError(0, "Unreachable", "no answer")
        for name in namespaces:
            if name not in self.visible:
                raise ApiError(403, "Forbidden", f"cannot list in {name}")
        return {}


def until_some(server: Any, *names: str) -> list[str]:
    return fake_time.run(watched_namespaces.wait_for_any(server, names))


def test_until_some_leaves_out_forbidden_namespaces() -> None:
    assert until_some(Server("b", "a"), "a", "b", "gone") == ["a", "b"]


def test_until_some_with_an_unreachable_api_server_keeps_all_namespaces() -> None:
    server = Server()
    server.down = True
    assert until_some(server, "a") == ["a"]


def test_until_more_returns_when_a_namespace_becomes_visible() -> None:
    server = Server()
    api: Any = server

    async def live() -> None:
        waiting = asyncio.create_task(watched_namespaces.wait_for_missing(api, ["gone"]))
        await eventually(lambda: server.requests >= 3, "it has checked three times")
        assert not waiting.done()
        server.visible.add("gone")
        await asyncio.wait_for(waiting, 60)

    fake_time.run(live())


@pytest.mark.processes
def test_operator_without_a_cluster_exits_with_a_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yolojob_operator"],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "error: no cluster: " in done.stderr
    assert "set KUBECONFIG" in done.stderr
    assert "Traceback" not in done.stderr
