"""Supervises kopf: restarts it when it exits with an error, and ends it when it hangs on shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import Any, cast

import kopf

from yolojob_operator.kopf_app import watched_namespaces
from yolojob_operator.kube.api_client import ApiClient

log = logging.getLogger(__name__)

RESTART_DELAY_SECONDS = 2.0
"""Before kopf is restarted."""
SHUTDOWN_TIMEOUT_SECONDS = 10.0
"""kopf gives its running tasks 5 s to end. After this time the supervisor cancels them."""
MAX_CANCELLATIONS = 20
"""After this many cancellations the process exits, and the kubelet restarts it."""
PAUSE_WAITER = "pause-waiter for "
"""Prefix of the names of kopf's tasks that wait for a pause of a watch. When such a task ends, also by cancellation,
kopf pauses the watch."""


async def supervise(memo: kopf.Memo, namespaces: list[str]) -> None:
    """Run kopf until the process is asked to stop.

    kopf exits on the first error in a watch other than 410, also on a temporary 401. The supervisor itself restarts
    kopf when a missing namespace is available again.
    """
    api = await ApiClient.connect()
    while True:
        watched = await watched_namespaces.wait_for_any(api, namespaces) if namespaces else []
        returned = asyncio.Event()
        waiter = asyncio.create_task(_signal_return(api, set(namespaces) - set(watched), returned))
        memo.cleaned = asyncio.Event()
        try:
            await run_to_end(
                kopf.operator(
                    memo=memo,
                    # kopf's default identity contains the user's name, and the user of a pod may have none.
                    identity=cast("Any", socket.gethostname()),
                    clusterwide=not namespaces,
                    namespaces=watched,
                    stop_flag=returned,
                ),
                memo.cleaned,
            )
        except Exception as error:
            if not hasattr(memo, "reconciler"):
                raise  # kopf failed to start
            log.error("kopf is restarted: %s: %s", type(error).__name__, error)
            await asyncio.sleep(RESTART_DELAY_SECONDS)
        else:
            if not returned.is_set():
                await api.close()
                return
        finally:
            waiter.cancel()


async def run_to_end(operator: Coroutine[Any, Any, Any], cleaned: asyncio.Event) -> None:
    """Run kopf until it ends, and end it if it hangs on shutdown.

    On shutdown kopf cancels its watches. A watch that is just logging in again takes the cancellation for a pause and
    continues; kopf would wait for it endlessly, and handle no signal meanwhile.

    Args:
        operator: kopf's operator.
        cleaned: set by the last of the cleanup handlers.

    Raises:
        Exception: the error with which kopf ended.
        SystemExit: kopf did not end after MAX_CANCELLATIONS.
    """
    before = asyncio.all_tasks()
    run, shutdown = asyncio.create_task(operator), asyncio.create_task(cleaned.wait())
    await asyncio.wait((run, shutdown), return_when=asyncio.FIRST_COMPLETED)
    shutdown.cancel()
    await asyncio.wait((run,), timeout=SHUTDOWN_TIMEOUT_SECONDS)
    for _ in range(MAX_CANCELLATIONS):
        if run.done():
            break
        log.warning("kopf does not end: its tasks are cancelled again")
        for task in asyncio.all_tasks() - before - {run}:
            if not task.get_name().startswith(PAUSE_WAITER):
                task.cancel()
        await asyncio.wait((run,), timeout=1.0)
    else:
        raise SystemExit("kopf does not end")
    run.result()


async def _signal_return(api: ApiClient, missing: set[str], returned: asyncio.Event) -> None:
    await watched_namespaces.wait_for_missing(api, missing)
    log.warning("kopf is restarted: one of the namespaces %s is available again", ", ".join(sorted(missing)))
    returned.set()
