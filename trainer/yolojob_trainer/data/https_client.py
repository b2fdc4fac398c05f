"""The client of requests over https: its timeouts, and the addresses to which a server may lead it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from yolojob.api import constants

CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 10, 30


class ForbiddenTarget(Exception):
    """A server names an address that the user has not named and may not reach directly."""


async def _check_redirect(_session: Any, _context: Any, parameters: Any) -> None:
    """Allow redirects only to https, and to other hosts only at public addresses.

    A pod reaches more than its author does: the metadata server of the cloud, which hands out the node's credentials,
    and services of the cluster.

    Raises:
        ForbiddenTarget: the redirect leads elsewhere.
    """
    source = parameters.response.url
    headers = parameters.response.headers
    target = source.join(type(source)(headers.get("Location") or headers.get("URI") or ""))  # as aiohttp does
    await _check_target(source.host, str(target))


async def _check_target(source: str, target: str) -> None:
    parts = urlsplit(target)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ForbiddenTarget(f"leads to {target.partition('?')[0][:200]!r}, which is not an address at https")
    allowed = (source, *os.environ.get(constants.ENV_REDIRECT_HOSTS, "").replace(",", " ").split())
    if parts.hostname not in allowed and not all(ip.is_global for ip in await _addresses(parts.hostname)):
        raise ForbiddenTarget(
            f"leads to {parts.hostname}, which is not a public address; if it belongs to the same service, allow it in "
            f"the environment variable {constants.ENV_REDIRECT_HOSTS}"
        )


def check_target(source: str, target: str) -> None:
    """Check an address that a server has named, as if it were a redirect.

    Args:
        source: the server's host.
        target: the address.

    Raises:
        ForbiddenTarget: it is not https, or another host that has no public address.
    """
    from fsspec.asyn import get_loop, sync

    sync(get_loop(), _check_target, source, target)


async def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the addresses of a host; none if a proxy resolves its name, which this machine perhaps cannot."""
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        if urllib.request.getproxies().get("https") and not urllib.request.proxy_bypass(host):
            return []
    found = await asyncio.get_running_loop().getaddrinfo(host, None)
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


async def https_client(**_: Any) -> Any:
    """Return a client for fsspec that checks each redirect."""
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=READ_TIMEOUT_SECONDS)
    # The environment defines the certificates (SSL_CERT_FILE) and the proxy.
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
    return aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=True, trace_configs=[trace])


async def client_without_netrc(**_: Any) -> Any:
    """Return a client for requests that have a login in a header."""
    client = await https_client()
    # aiohttp refuses a request that has both a login from .netrc and a header Authorization.
    client._get_netrc_auth = lambda _host: None  # noqa: SLF001
    return client
