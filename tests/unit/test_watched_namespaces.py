"""Which namespaces can be seen, and what is said where there is no cluster at all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from yolojob_operator.kopf_app import watched_namespaces
from yolojob_operator.kube.api_client import ApiError


class Server:
    """An API server that lets us see some namespaces, and may be away."""

    def __init__(self, *visible: str) -> None:
        self.visible, self.away, self.asked = set(visible), False, 0

    async def versions(self, _: str, namespaces: Iterable[str]) -> dict[str, int]:
        self.asked += 1
        if self.away:
            raise ApiError(0, "Unreachable", "no answer")
        for name in namespaces:
            if name not in self.visible:
                raise ApiError(403, "Forbidden", f"cannot list in {name}")
        return {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_namespaces, "CHECK_INTERVAL_SECONDS", 0.01)


def test_those_that_may_not_be_seen_are_left_out() -> None:
    assert asyncio.run(watched_namespaces.until_some(Server("b", "a"), ["a", "b", "gone"])) == ["a", "b"]  # type: ignore[arg-type]


def test_an_api_server_that_is_away_hides_nothing() -> None:
    server = Server()
    server.away = True
    assert asyncio.run(watched_namespaces.until_some(server, ["a"])) == ["a"]  # type: ignore[arg-type]


def test_one_that_comes_back_is_told() -> None:
    server = Server()

    async def live() -> None:
        waiting = asyncio.create_task(watched_namespaces.until_more(server, ["gone"]))  # type: ignore[arg-type]
        while server.asked < 3:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        server.visible.add("gone")
        await asyncio.wait_for(waiting, 5)

    asyncio.run(live())


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yolojob_operator"],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "error: no cluster: " in done.stderr
    assert "set KUBECONFIG" in done.stderr
    assert "Traceback" not in done.stderr
