"""Lets only the workers of one attempt reach rank 0's key-value store.

torch's TCPStore accepts every connection: whoever connects first as rank 1 is rank 1, and every client can read and
change all keys. Therefore the store listens on the loopback address of worker 0 only. The launcher of worker 0 opens a
gate: a port that forwards a connection to the store once the other side has proved that it knows the attempt's key. The
launcher of every other worker opens a door: a port on its own loopback address from which connections reach the store
through the gate.

Both sides prove that they know the key, each by an HMAC of two random numbers (a challenge-response protocol, as in
RFC 2195, but mutual). What follows is neither encrypted nor signed: the network between the workers must be one in
which strangers can neither listen nor pass messages on in the name of worker 0. Both run in the launcher, without
torch: code of torch that holds the interpreter's lock while it waits for the store would otherwise wait for itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
HANDSHAKE_SECONDS = 5.0
RETRY_SECONDS = 0.2
"""Pause between two attempts to reach the gate."""
SHOW_SECONDS = 30.0
"""Time after which the log shows why the gate is not reachable, again and again."""
MAX_STRANGERS = 256
"""Connections that have not proved anything yet; workers do so immediately."""
MIN_SECRET_BYTES = 16
_NONCE_BYTES = _PROOF_BYTES = 32
_CHUNK_BYTES = 1 << 16


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


class Gate:
    """The port of worker 0, in front of the store."""

    def __init__(self, key: bytes, store_port: int) -> None:
        """
        Args:
            key: the attempt's key.
            store_port: port of the store on the loopback address.
        """
        self._key, self._store_port = key, store_port
        self._strangers: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        """Connections without a proof, oldest first, and what serves them."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, port: int) -> asyncio.Server:
        """Listen on all addresses.

        Raises:
            OSError: the port is in use.
        """
        return await asyncio.start_server(self._accept, None, port, backlog=1024)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._strangers[writer] = task
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            self._strangers.pop(oldest).cancel()
            oldest.transport.abort()  # here: a task that is cancelled before it begins closes nothing

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                challenge = secrets.token_bytes(_NONCE_BYTES)
                writer.write(challenge)
                answer = await reader.readexactly(_NONCE_BYTES + _PROOF_BYTES)
                nonces = challenge + answer[:_NONCE_BYTES]
                if not hmac.compare_digest(answer[_NONCE_BYTES:], _proof(self._key, b"worker", nonces)):
                    return
                # Only now: the other side learns that the store is open too.
                store = await asyncio.open_connection(LOOPBACK, self._store_port)
                writer.write(_proof(self._key, b"gate", nonces))
                await writer.drain()
            self._strangers.pop(writer, None)
            await _splice((reader, writer), store)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            self._strangers.pop(writer, None)
            writer.close()


class Door:
    """The port of another worker, from which its processes reach the store."""

    def __init__(self, key: bytes, host: str, port: int) -> None:
        """
        Args:
            key: the attempt's key.
            host: address of worker 0. It is resolved for every connection: after a restart a name server may know the
                address of the old pod for a while.
            port: port of the gate.
        """
        self._key, self._host, self._gate_port = key, host, port
        # Bound, but not listening yet: a connection is refused until the store is reachable.
        self._socket = socket.socket()
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> asyncio.Server:
        """Wait until the store is reachable through the gate, then listen."""
        loop = asyncio.get_running_loop()
        shown = loop.time()
        while True:
            try:
                _, writer = await self._pass_gate()
            except OSError as error:
                if loop.time() - shown >= SHOW_SECONDS:
                    shown = loop.time()
                    why = error or "no answer"
                    print(f"yolojob: worker 0 is not reachable: {why}", file=sys.stderr, flush=True)  # noqa: T201
                await asyncio.sleep(RETRY_SECONDS)
            else:
                writer.close()
                return await asyncio.start_server(self._accept, sock=self._socket)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _splice((reader, writer), await self._pass_gate())
        except (OSError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _pass_gate(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to the store.

        Raises:
            OSError: worker 0 does not answer, does not know the key, or refuses this one.
        """
        async with asyncio.timeout(HANDSHAKE_SECONDS):  # TimeoutError is an OSError
            reader, writer = await asyncio.open_connection(self._host, self._gate_port)
            try:
                nonce = secrets.token_bytes(_NONCE_BYTES)
                nonces = await reader.readexactly(_NONCE_BYTES) + nonce
                writer.write(nonce + _proof(self._key, b"worker", nonces))
                proof = await reader.readexactly(_PROOF_BYTES)
                if not hmac.compare_digest(proof, _proof(self._key, b"gate", nonces)):
                    raise ConnectionError(f"{self._host} does not know the attempt's key")
            except asyncio.IncompleteReadError:
                writer.close()
                raise ConnectionError(f"{self._host} has closed the connection") from None
            except BaseException:
                writer.close()
                raise
            return reader, writer


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _splice(one: Stream, other: Stream) -> None:
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
