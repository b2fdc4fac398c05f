"""Lets only the workers of one attempt reach rank 0's key-value store, through a pair of authenticating proxies.

The TCPStore of torch accepts every connection, and every client can read and change all keys. The first client that
calls itself rank 1 becomes rank 1. Therefore the store listens on the loopback address of worker 0 only. The launcher
of worker 0 runs a server proxy: it forwards a connection to the store after the client has proved that it knows the
attempt's key. The launcher of every other worker runs a client proxy: it listens on the loopback address of that
worker, and forwards each connection to the server proxy.

Both sides prove that they know the key, each by an HMAC of two random numbers (a mutual challenge-response protocol,
compare RFC 2195). The traffic after that is neither encrypted nor signed: an attacker who can read or relay the traffic
between the workers is not kept out. Both proxies run in the launcher, which does not import torch: code of torch may
hold the interpreter's lock while it waits for the store, and a proxy in the same process would then never answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
HANDSHAKE_SECONDS = 5.0
RETRY_SECONDS = 0.2
"""Pause between two attempts to reach the server proxy."""
FIRST_LOG_SECONDS, LOG_INTERVAL_SECONDS = 10.0, 30.0
"""Time until the first log line that says why the server proxy is not reachable, and between two of them."""
MAX_UNAUTHENTICATED = 256
"""Connections that have not proved anything yet; workers do so immediately."""
MIN_SECRET_BYTES = 16
_NONCE_BYTES = _PROOF_BYTES = 32
_CHUNK_BYTES = 1 << 16

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def attempt_key(secret_file: Path, attempt: int) -> bytes:
    """Return the key of one attempt, derived from the job's secret. A worker of another attempt has another key.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is too short for a secret.
    """
    secret = secret_file.read_bytes()
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"{secret_file} has {len(secret)} bytes; a secret has at least {MIN_SECRET_BYTES}")
    return hmac.digest(secret, b"yolojob attempt %d" % attempt, hashlib.sha256)


def _proof(key: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(key, role + nonces, hashlib.sha256)


class ServerProxy:
    """The port of worker 0, in front of the store."""

    def __init__(self, key: bytes, store_port: int) -> None:
        """
        Args:
            key: the attempt's key.
            store_port: port of the store on the loopback address.
        """
        self._key, self._store_port = key, store_port
        self._unauthenticated: dict[asyncio.Task[None], None] = {}
        """Tasks of the connections without a proof, oldest first."""

    async def open(self, port: int) -> asyncio.Server:
        """Listen on all addresses.

        Raises:
            OSError: the port is in use.
        """
        return await asyncio.start_server(self._serve, None, port, backlog=1024)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._unauthenticated[task] = None
        if len(self._unauthenticated) > MAX_UNAUTHENTICATED:
            oldest = next(iter(self._unauthenticated))
            del self._unauthenticated[oldest]
            oldest.cancel()
        try:
            store = await self._authenticate(reader, writer)
            self._unauthenticated.pop(task, None)
            await _forward((reader, writer), store)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the connection is closed, whatever is wrong with it
        finally:
            self._unauthenticated.pop(task, None)
            writer.close()

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream:
        """Return a connection to the store for a client that knows the key.

        Raises:
            OSError: the client does not know the key or is too slow, or the store does not listen yet.
            IncompleteReadError: the client closes the connection.
        """
        async with asyncio.timeout(HANDSHAKE_SECONDS):  # TimeoutError is an OSError
            challenge = secrets.token_bytes(_NONCE_BYTES)
            writer.write(challenge)
            answer = await reader.readexactly(_NONCE_BYTES + _PROOF_BYTES)
            nonces = challenge + answer[:_NONCE_BYTES]
            if not hmac.compare_digest(answer[_NONCE_BYTES:], _proof(self._key, b"client", nonces)):
                raise ConnectionError("the client does not know the attempt's key")
            # Before the answer, so that the answer also tells the client that the store listens.
            store = await asyncio.open_connection(LOOPBACK, self._store_port)
            writer.write(_proof(self._key, b"server", nonces))
            await writer.drain()
            return store


class ClientProxy:
    """The port of another worker, through which its processes reach the store."""

    def __init__(self, key: bytes, host: str, port: int) -> None:
        """
        Args:
            key: the attempt's key.
            host: address of worker 0. It is resolved for every connection: after a restart a name server may know the
                address of the old pod for a while.
            port: port of the server proxy.
        """
        self._key, self._host, self._server_port = key, host, port
        # Bound, but not listening yet: a connection is refused until the store is reachable.
        self._socket = socket.socket()
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]

    async def open(self) -> asyncio.Server:
        """Wait until the store is reachable, then listen."""
        loop = asyncio.get_running_loop()
        next_log = loop.time() + FIRST_LOG_SECONDS
        while True:
            try:
                _, writer = await self._connect()
            except OSError as error:
                if loop.time() >= next_log:
                    next_log = loop.time() + LOG_INTERVAL_SECONDS
                    why = error or "no answer"
                    print(f"yolojob: worker 0 is not reachable: {why}", file=sys.stderr, flush=True)  # noqa: T201
                await asyncio.sleep(RETRY_SECONDS)
            else:
                writer.close()
                return await asyncio.start_server(self._serve, sock=self._socket)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _forward((reader, writer), await self._connect())
        except (OSError, asyncio.CancelledError):
            return  # the process sees a closed connection, and reports a lost peer
        finally:
            writer.close()

    async def _connect(self) -> Stream:
        """Return a connection to the store.

        Raises:
            OSError: worker 0 does not answer, does not know the key, or refuses this one.
        """
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            reader, writer = await asyncio.open_connection(self._host, self._server_port)
            with ExitStack() as on_failure:
                on_failure.callback(writer.close)
                await self._authenticate(reader, writer)
                on_failure.pop_all()
            return reader, writer

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        try:
            nonces = await reader.readexactly(_NONCE_BYTES) + nonce
            writer.write(nonce + _proof(self._key, b"client", nonces))
            proof = await reader.readexactly(_PROOF_BYTES)
        except asyncio.IncompleteReadError:
            raise ConnectionError(f"{self._host} has closed the connection") from None
        if not hmac.compare_digest(proof, _proof(self._key, b"server", nonces)):
            raise ConnectionError(f"{self._host} does not know the attempt's key")


async def _forward(one: Stream, other: Stream) -> None:
    """Copy bytes in both directions until either side closes; then close both."""
    for _, writer in (one, other):
        # The store's messages are small, and each waits for its answer.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    copies = [asyncio.ensure_future(_copy(one[0], other[1])), asyncio.ensure_future(_copy(other[0], one[1]))]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copies:
            task.cancel()
        for _, writer in (one, other):
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
