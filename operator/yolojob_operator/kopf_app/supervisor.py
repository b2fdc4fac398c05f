"""kopf's rounds: what it takes for the end of itself is the beginning of the next one."""

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
"""Before another beginning."""
SHUTDOWN_TIMEOUT_SECONDS = 10.0
"""kopf gives what is still running 5 s at its end. After these we end it."""
MAX_CANCELLATIONS = 20
"""After these the process ends, and the kubelet begins another one."""
PAUSE_WAITER = "pause-waiter for "
"""So begins the name of the task that kopf takes for a pause of a watch when it ends, also when it was cancelled."""


async def operate(memo: kopf.Memo, namespaces: list[str]) -> None:
    """Run until we are told to end.

    kopf ends with the first error in a watch other than 410, and with a 401 that passes. We end it ourselves when a namespace
    is back that could not be seen.
    """
    cluster = await ApiClient.connect()
    while True:
        watched = await watched_namespaces.until_some(cluster, namespaces) if namespaces else []
        returned = asyncio.Event()
        looking = asyncio.create_task(_tell_more(cluster, set(namespaces) - set(watched), returned))
        memo.cleaned = asyncio.Event()
        try:
            await ended(
                kopf.operator(
                    memo=memo,
                    # kopf's own guess asks for the user's name, and a pod's user may have none.
                    identity=cast("Any", socket.gethostname()),
                    clusterwide=not namespaces,
                    namespaces=watched,
                    stop_flag=returned,
                ),
                memo.cleaned,
            )
        except Exception as error:
            if not hasattr(memo, "reconciler"):
                raise  # it could not begin
            log.error("begun anew: %s: %s", type(error).__name__, error)
            await asyncio.sleep(RESTART_DELAY_SECONDS)
        else:
            if not returned.is_set():
                await cluster.close()
                return
        finally:
            looking.cancel()


async def ended(round_: Coroutine[Any, Any, Any], cleaned: asyncio.Event) -> None:
    """Run one of kopf's rounds to its end, which it may not find by itself.

    It cancels its watches at the end. One that just logs in again takes that for a pause, and goes on; kopf would wait for it
    for ever, and hear no signal meanwhile.

    Args:
        round_: kopf's operator.
        cleaned: set by the last of our handlers.

    Raises:
        Exception: what the round ended with.
    """
    before = asyncio.all_tasks()
    life, told = asyncio.create_task(round_), asyncio.create_task(cleaned.wait())
    await asyncio.wait((life, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    await asyncio.wait((life,), timeout=SHUTDOWN_TIMEOUT_SECONDS)
    for _ in range(MAX_CANCELLATIONS):
        if life.done():
            break
        log.warning("kopf does not end: what it waits for is cancelled again")
        for task in asyncio.all_tasks() - before - {life}:
            if not task.get_name().startswith(PAUSE_WAITER):
                task.cancel()
        await asyncio.wait((life,), timeout=1.0)
    else:
        raise SystemExit("kopf does not end")
    life.result()


async def _tell_more(cluster: ApiClient, missing: set[str], returned: asyncio.Event) -> None:
    await watched_namespaces.until_more(cluster, missing)
    log.warning("begun anew: one of %s is back", ", ".join(sorted(missing)))
    returned.set()
