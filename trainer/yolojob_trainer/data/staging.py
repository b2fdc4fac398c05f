"""From where data lies to a folder on this node: once per node, whoever comes first, and never half.

What is staged lies under a name made of its content (addresses, sizes, etags), so a data set that has changed is another
one, and a worker that finds the folder finds all of it. Who comes while another stages waits for it. What a killed worker
had fetched is used by the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from yolojob.api.reasons import Reason
from yolojob_trainer.data import archive
from yolojob_trainer.data.object_store import FIRST_PAUSE, LONGEST_PAUSE, Remote, RemoteFile, Unavailable
from yolojob_trainer.errors import BadInput

BLOCK = 8 << 20
"""Bytes of one request: large enough for full speed, small enough to be worth little when the connection breaks."""
CONNECTIONS = 16
SPARE = 64 << 20
"""Bytes that must stay free beside what is staged."""

Progress = Callable[[int, int | None], None]
"""Called with (bytes that are there, bytes in all or none where the server does not say)."""


class Stage:
    """A node's cache of what has been fetched."""

    def __init__(self, folder: Path, progress: Progress, field: str) -> None:
        """
        Args:
            folder: the cache; made if it is not there.
            progress: told how far it is.
            field: where in the specification the user named the data, for messages.
        """
        self.folder = folder
        self._progress = progress
        self._field = field
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._there = 0
        self._total: int | None = None

    def make(self, key: str, write: Callable[[Path], None]) -> Path:
        """The folder of that key, written by `write` into an empty folder if it is not there yet."""

        def whole(partial: Path) -> Path:
            content = partial / "content"
            shutil.rmtree(content, ignore_errors=True)
            content.mkdir()
            write(content)
            return content

        return self._once(key, whole)

    def fetch(self, remote: Remote) -> Path:
        """A remote folder as it is, an archive unpacked, or the folder with a single file.

        Raises:
            BadInput: it is not there, may not be read, is unsafe, or does not fit on the disk.
            Unavailable: no answer for a long time.
        """
        files = remote.files()
        key = _key(remote.identity(files), files)
        single = files[0] if len(files) == 1 and not files[0].path else None

        def fetch(partial: Path) -> Path:
            content = partial / "content"
            if single is None:
                self._download(remote, files, content)
                return content
            self._download(remote, [single], partial, "download")
            name = Path(remote.uri.partition("?")[0]).name
            if name.endswith((".pt", ".yaml", ".yml")):
                content.mkdir(exist_ok=True)
                (partial / "download").rename(content / name)
            else:
                self._unpack(partial / "download", content, remote.shown)
            return content

        return self._once(key, fetch)

    def unpack(self, path: Path) -> Path:
        """The content of an archive that lies on this machine already."""
        facts = path.stat()
        key = _key(str(path), [RemoteFile(path="", size=facts.st_size, tag=str(facts.st_mtime_ns))])

        def unpack(partial: Path) -> Path:
            self._unpack(path, partial / "content", str(path))
            return partial / "content"

        return self._once(key, unpack)

    def _unpack(self, source: Path, content: Path, shown: str) -> None:
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir(parents=True)
        archive.unpack(source, content, f"{self._field}: {shown}", self._room)

    def _once(self, key: str, write: Callable[[Path], Path]) -> Path:
        """What `write` makes of a folder of its own, published under the key; one process at a time on this node."""
        folder, partial = self.folder / key, self.folder / f".{key}.partial"
        if folder.is_dir():
            return folder
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder / f".{key}.lock"):
                if not folder.is_dir():
                    partial.mkdir(exist_ok=True)
                    write(partial).rename(folder)
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BadInput(Reason.NO_SPACE, f"{self._field}: the disk under {self.folder} is full") from error
            raise BadInput(Reason.CACHE_FAILED, f"{self._field}: cannot be staged in {self.folder}: {error}") from error
        return folder

    def _room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed + SPARE:
            raise BadInput(
                Reason.NO_SPACE,
                f"{self._field}: {needed / 2**20:.0f} MiB are to be staged in {self.folder}, and {free / 2**20:.0f} MiB "
                "are free there: free some, or give the cache another volume",
            )

    def _download(self, remote: Remote, files: list[RemoteFile], folder: Path, name: str = "") -> None:
        """Fetch files into a folder; `name` is for a single file that has none below its root."""
        targets = [(file, folder / (name or archive.inside(file.path, remote.shown))) for file in files]
        sizes = [file.size for file in files]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._there = sum(max(_size(target), _size(_part(target))) for _, target in targets)
        self._room((self._total or 0) - self._there)
        self._progress(self._there, self._total)
        ahead = max(CONNECTIONS // len(files), 1)
        with ThreadPoolExecutor(CONNECTIONS) as pool, ThreadPoolExecutor(CONNECTIONS) as blocks:
            tasks = [pool.submit(self._download_one, remote, f, target, ahead, blocks) for f, target in targets]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _download_one(self, remote: Remote, file: RemoteFile, target: Path, ahead: int, blocks: Executor) -> None:
        """Go on where the last one stopped: the key, and so the folder, says that the content is the same."""
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        with part.open("ab") as out:
            if remote.scheme == "https":
                self._append_stream(remote, file, out)
            elif file.size:
                self._append_blocks(remote, file, out, ahead, blocks)
        part.rename(target)

    def _append_blocks(self, remote: Remote, file: RemoteFile, out: IO[bytes], ahead: int, pool: Executor) -> None:
        """Blocks, `ahead` of them under way at once, written in their order."""
        assert file.size is not None
        starts = iter(range(out.tell(), file.size, BLOCK))
        under_way: deque[Future[bytes]] = deque()
        while not self._stopped.is_set():
            for start in islice(starts, ahead - len(under_way)):
                under_way.append(pool.submit(remote.read, file.path, start, min(start + BLOCK, file.size)))
            if not under_way:
                return
            self._write(out, under_way.popleft().result())
        raise Unavailable(f"{self._field}: given up, because another file could not be fetched")

    def _append_stream(self, remote: Remote, file: RemoteFile, out: IO[bytes]) -> None:
        """One stream, taken up again where it broke, or begun again where the server knows no ranges."""
        position = out.tell()
        deadline = time.monotonic() + remote.patience
        pause = FIRST_PAUSE
        while file.size is None or position < file.size:
            try:
                begin, stream = remote.stream(position)
                if begin < position:
                    out.truncate(0)
                    self._add(-position)
                    position = 0
                for block in stream:
                    self._write(out, block)
                    position += len(block)
                    deadline, pause = time.monotonic() + remote.patience, FIRST_PAUSE
                if file.size is None:
                    return
                if position < file.size:
                    raise Unavailable(f"{remote.shown}: {position} bytes came, not {file.size}")
            except Unavailable:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        if position > (file.size or position):
            raise BadInput(Reason.INVALID_DATASET, f"{self._field}: {remote.shown}: is longer than the server says")

    def _write(self, out: IO[bytes], block: bytes) -> None:
        out.write(block)
        self._add(len(block))

    def _add(self, count: int) -> None:
        with self._lock:
            self._there += count
            self._progress(self._there, self._total)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock among all processes of this node. The kernel frees it when its holder dies, however it dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(uri: str, files: list[RemoteFile]) -> str:
    content = json.dumps([uri, [[f.path, f.size, f.tag] for f in files]])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
