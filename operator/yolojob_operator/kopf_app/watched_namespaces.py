"""Which of the watched namespaces can be seen: one that was deleted took our rights in it along.

kopf lists all of its namespaces before it tells of any object, and would wait for ever for one that it may not see.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from yolojob.api import constants
from yolojob_operator.kube.api_client import ApiClient, ApiError

log = logging.getLogger(__name__)

CHECK_INTERVAL_SECONDS = 10.0
"""Between two looks for a namespace that is missing."""


async def seen(cluster: ApiClient, namespaces: Iterable[str]) -> set[str]:
    """Those in which we may list jobs, or of which nobody can tell now."""
    return {name for name in namespaces if await _may_list(cluster, name)}


async def _may_list(cluster: ApiClient, namespace: str) -> bool:
    try:
        await cluster.versions(constants.KIND, (namespace,))
    except ApiError as error:
        if error.status == 403:
            log.warning("%s: not watched: %s", namespace, error)
            return False
    return True


async def until_some(cluster: ApiClient, namespaces: Iterable[str]) -> list[str]:
    """Wait until any of them can be seen; those that can."""
    names = list(namespaces)
    while not (found := await seen(cluster, names)):
        await asyncio.sleep(CHECK_INTERVAL_SECONDS)
    return sorted(found)


async def until_more(cluster: ApiClient, missing: Iterable[str]) -> None:
    """Wait until any of these can be seen; for ever, where there are none."""
    names = list(missing)
    while not names or not await seen(cluster, names):
        await asyncio.sleep(CHECK_INTERVAL_SECONDS)
