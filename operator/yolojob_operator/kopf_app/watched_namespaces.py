"""Finds out in which of the watched namespaces jobs may be listed: a deleted namespace takes the operator's rights in
it along.

kopf lists all its namespaces before it delivers any object, and would wait endlessly for one that it may not list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from yolojob.api import constants
from yolojob_operator.kube.api_client import ApiClient, ApiError

log = logging.getLogger(__name__)

CHECK_INTERVAL_SECONDS = 10.0
"""Between two checks of missing namespaces."""


async def listable(api: ApiClient, namespaces: Iterable[str]) -> set[str]:
    """The namespaces in which jobs may be listed, or for which this cannot be determined now."""
    return {name for name in namespaces if await _may_list(api, name)}


async def _may_list(api: ApiClient, namespace: str) -> bool:
    try:
        await api.versions(constants.KIND, (namespace,))
    except ApiError as error:
        if error.status == 403:
            log.warning("%s: not watched: %s", namespace, error)
            return False
    return True


async def wait_for_any(api: ApiClient, namespaces: Iterable[str]) -> list[str]:
    """Wait until any of these namespaces is listable. Returns all that are, sorted."""
    names = list(namespaces)
    while not (available := await listable(api, names)):
        await asyncio.sleep(CHECK_INTERVAL_SECONDS)
    return sorted(available)


async def wait_for_missing(api: ApiClient, missing: Iterable[str]) -> None:
    """Wait until any of the missing namespaces is listable. Without missing namespaces it never returns."""
    names = list(missing)
    while not names or not await listable(api, names):
        await asyncio.sleep(CHECK_INTERVAL_SECONDS)
