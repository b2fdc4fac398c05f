"""Stages data: downloads and unpacks it into a cache folder of this node, once per node.

The name of a staged folder is a hash of addresses, sizes and etags. So a changed dataset gets another folder, and a
folder that exists is complete. Processes that need the same data wait for the one that stages it. Files that a killed
worker has downloaded are reused by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob.api.spec import WEIGHTS_SUFFIXES
from yolojob_trainer.data import archive, shards
from yolojob_trainer.data.object_store import ObjectStore, RemoteFile, Unavailable
from yolojob_trainer.errors import BadInput
from yolojob_trainer.system.retry import Backoff

BLOCK_BYTES = 8 << 20
"""Size of one request: large enough for full speed, small enough to lose little when the connection breaks."""
MAX_CONNECTIONS = 16
FILES_AHEAD = 4 * MAX_CONNECTIONS
"""Files whose download has been submitted: a task for each of a million files would take gigabytes."""
RESERVED_BYTES, RESERVED_FILES = 64 << 20, 10_000
"""Disk space and files that must stay free in addition to the staged data."""
CHECK_BYTES = 64 << 20
"""Written between two looks at the free space, where the size is not known beforehand."""

ProgressCallback = Callable[[int, int | None], None]
"""Called with (bytes staged so far, bytes in total or None if the server does not report it)."""


class Stage:
    """A cache of staged data on this node."""

    def __init__(self, folder: Path, progress: ProgressCallback, field: str) -> None:
        """
        Args:
            folder: the cache; created if missing.
            progress: called during downloads, from several threads.
            field: the field of the specification that names the data, for messages.
        """
        self.folder = folder
        self._progress = progress
        self._field = field
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._received = 0
        self._total: int | None = None
        self._unchecked = 0
        """Bytes written since the last look at the free space."""

    def make(self, key: str, write: Callable[[Path], None]) -> Path:
        """Return the folder of this key; `write` fills an empty folder if it does not exist yet."""

        def write_content(partial: Path) -> Path:
            content = partial / "content"
            _write_anew(content, write)
            return content

        return self._once(key, write_content)

    def fetch(self, store: ObjectStore) -> Path:
        """Download a folder as it is, an archive that is unpacked, or a single file of weights or YAML.

        Returns:
            The folder with the content.

        Raises:
            BadInput: it does not exist, access is denied, it is unsafe, or it does not fit on the disk.
            Unavailable: the server did not answer for a long time.
        """
        files = store.files()
        key = _key(store.identity(files), files)
        single = files[0] if len(files) == 1 and (files[0].is_archive or not files[0].path) else None

        def fetch(partial: Path) -> Path:
            content = partial / "content"
            if single is None:
                self._download(store, files, content)
                return content
            self._download(store, [single], partial, "download")
            name = Path(single.path or store.uri.partition("?")[0]).name
            if name.endswith((*WEIGHTS_SUFFIXES, ".yaml", ".yml")):
                content.mkdir(exist_ok=True)
                (partial / "download").rename(content / name)
            else:
                self._unpack(partial / "download", content, store.shown)
            return content

        return self._once(key, fetch)

    def unpack(self, path: Path) -> Path:
        """Return the folder with the content of an archive on this machine."""
        info = path.stat()
        key = _key(str(path), [RemoteFile(path="", size=info.st_size, tag=str(info.st_mtime_ns))])

        def unpack(partial: Path) -> Path:
            self._unpack(path, partial / "content", str(path))
            return partial / "content"

        return self._once(key, unpack)

    def unpack_shards(self, folder: Path, boundary: Path | None) -> Path:
        """Return the folder with the content of a dataset in shards; any other dataset's folder as it is.

        Args:
            folder: the dataset on this node.
            boundary: folder that links in it must not leave; None if they may lead anywhere.
        """
        dataset = shards.find(folder, boundary, self._field)
        if dataset is None:
            return folder
        files = [RemoteFile(path=path, size=size, tag=tag) for path, size, tag in dataset.identity()]
        self._received, self._total = 0, dataset.size

        def unpack(target: Path) -> None:
            self._progress(0, self._total)
            shards.unpack(dataset, target, self._field, self._check_space, self._add)

        return self.make(f"shards-{_key(str(folder), files)}", unpack)

    def _unpack(self, source: Path, content: Path, shown: str) -> None:
        _write_anew(
            content, lambda folder: archive.unpack(source, folder, f"{self._field}: {shown}", self._check_space)
        )

    def _once(self, key: str, write: Callable[[Path], Path]) -> Path:
        """Return the folder of the key; `write` creates its content, in one process at a time on this node."""
        folder, partial = self.folder / key, self.folder / f".{key}.partial"
        if folder.is_dir():
            return folder
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with _exclusive_lock(self.folder / f".{key}.lock"):
                if not folder.is_dir():
                    partial.mkdir(exist_ok=True)
                    write(partial).rename(folder)
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BadInput(Reason.NO_SPACE, f"{self._field}: the disk under {self.folder} is full") from error
            raise BadInput(Reason.CACHE_FAILED, f"{self._field}: cannot be staged in {self.folder}: {error}") from error
        return folder

    def _check_digest(self, path: Path, file: RemoteFile, shown: str) -> None:
        """Compare a downloaded file with its checksum, if that is known, and remove it if it differs.

        Raises:
            BadInput: it differs.
        """
        if not file.sha256:
            return
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.sha256:
            path.unlink()
            name = f"{file.path}: " if file.path else ""
            raise BadInput(
                Reason.INVALID_DATASET, f"{self._field}: {shown}: {name}has the SHA-256 {found}, not {file.sha256}"
            )

    def _check_space(self, needed: int, files: int = 0) -> None:
        """Check that so many bytes in so many files can still be written.

        Raises:
            BadInput: they would fill the disk.
        """
        usage, inodes = shutil.disk_usage(self.folder), os.statvfs(self.folder)
        share = float(os.environ.get(constants.ENV_RESERVED_DISK_SHARE) or 0)
        free = usage.free - max(RESERVED_BYTES, int(share * usage.total))
        advice = "free some space, or use another volume for the cache"
        if free < needed:
            raise BadInput(
                Reason.NO_SPACE,
                f"{self._field}: {needed / 2**20:.0f} MiB are to be staged in {self.folder}, but only "
                f"{max(free, 0) / 2**20:.0f} MiB may be used ({usage.free / 2**20:.0f} MiB are free): {advice}",
            )
        # File systems without a fixed number of files report 0.
        if inodes.f_files and inodes.f_favail < files + RESERVED_FILES:
            raise BadInput(
                Reason.NO_SPACE,
                f"{self._field}: {files} files are to be staged in {self.folder}, but its file system has room for "
                f"only {max(inodes.f_favail - RESERVED_FILES, 0)}: {advice}",
            )

    def _download(self, store: ObjectStore, files: list[RemoteFile], folder: Path, name: str = "") -> None:
        """Download files into a folder; `name` is the local name of a single file that is the root itself."""

        def target(file: RemoteFile) -> Path:
            return folder / (name or archive.inside(file.path, store.shown))

        sizes = [file.size for file in files]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._received = sum(max(_size(path), _size(_part(path))) for path in map(target, files))
        self._check_space((self._total or 0) - self._received, len(files))
        self._progress(self._received, self._total)
        ahead = max(MAX_CONNECTIONS // len(files), 1)
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool, ThreadPoolExecutor(MAX_CONNECTIONS) as block_pool:
            blocks = _BlockReader(store, block_pool, ahead)
            pending: set[Future[None]] = set()
            try:
                for file in files:
                    if len(pending) >= FILES_AHEAD:
                        pending = _wait_for_any(pending)
                    pending.add(pool.submit(self._download_file, blocks, file, target(file)))
                while pending:
                    pending = _wait_for_any(pending)
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _download_file(self, blocks: _BlockReader, file: RemoteFile, target: Path) -> None:
        """Download a file, or the rest of it: the folder belongs to the key, so a partial file has the same content."""
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        with part.open("ab") as out:
            if blocks.store.scheme == "https":
                self._append_stream(blocks.store, file, out)
            elif file.size:
                self._append_blocks(blocks, file, out)
        self._check_digest(part, file, blocks.store.shown)
        part.rename(target)

    def _append_blocks(self, blocks: _BlockReader, file: RemoteFile, out: IO[bytes]) -> None:
        """Append the rest of a file, with several requests at once, in the order of the blocks."""
        for block in blocks.read(file, out.tell()):
            self._check_stopped()
            self._write(out, block)

    def _append_stream(self, store: ObjectStore, file: RemoteFile, out: IO[bytes]) -> None:
        """Append the rest of a file from one stream.

        A broken stream is resumed at its position, or from the beginning if the server does not support ranges.
        """
        position = out.tell()
        if file.size is not None and position > file.size:
            out.truncate(0)
            position = 0
        backoff = Backoff(store.retry_timeout)
        while file.size is None or position < file.size:
            self._check_stopped()
            try:
                begin, stream = store.stream(file.path, position)
                if begin < position:
                    out.truncate(0)
                    self._add(-position)
                    position = 0
                for block in stream:
                    self._check_stopped()
                    position += len(block)
                    if file.size is not None and position > file.size:
                        out.truncate(0)
                        name = f"{file.path}: " if file.path else ""
                        raise BadInput(
                            Reason.INVALID_DATASET,
                            f"{self._field}: {store.shown}: {name}is longer than the {file.size} bytes that the server "
                            "has stated",
                        )
                    self._write(out, block)
                    backoff.reset()
                if file.size is None:
                    return
                if position < file.size:
                    raise Unavailable(f"{store.shown}: received {position} bytes, expected {file.size}")
            except Unavailable as error:
                if self._stopped.is_set() or not backoff.wait(error):
                    raise

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Unavailable(f"{self._field}: cancelled, because another file could not be downloaded")

    def _write(self, out: IO[bytes], block: bytes) -> None:
        out.write(block)
        self._unchecked += len(block)
        if self._total is None and self._unchecked >= CHECK_BYTES:
            self._unchecked = 0
            self._check_space(0)
        self._add(len(block))

    def _add(self, count: int) -> None:
        with self._lock:
            self._received += count
            self._progress(self._received, self._total)


class _BlockReader:
    """Reads files of an object store in blocks, several of them at once."""

    def __init__(self, store: ObjectStore, pool: Executor, ahead: int) -> None:
        """
        Args:
            store: the object store.
            pool: runs the requests of all files.
            ahead: requests in flight for one file.
        """
        self.store = store
        self._pool = pool
        self._ahead = ahead

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the blocks of a file from an offset on, in order."""
        assert file.size is not None
        starts = iter(range(start, file.size, BLOCK_BYTES))
        in_flight: deque[Future[bytes]] = deque()
        while True:
            for begin in islice(starts, self._ahead - len(in_flight)):
                end = min(begin + BLOCK_BYTES, file.size)
                in_flight.append(self._pool.submit(self.store.read, file.path, begin, end))
            if not in_flight:
                return
            yield in_flight.popleft().result()


def _wait_for_any(pending: set[Future[None]]) -> set[Future[None]]:
    """Wait until a task has ended, raise its error if there is one, and return those that have not ended."""
    done, pending = wait(pending, return_when=FIRST_COMPLETED)
    for task in done:
        task.result()
    return pending


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock among all processes of this node. The kernel releases it when its holder dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(uri: str, files: list[RemoteFile]) -> str:
    """Return the hash of the JSON of [uri, [[path, size, tag] of each file]], without a copy of it in memory."""
    digest = hashlib.sha256(f"[{json.dumps(uri)}, [".encode())
    for number, file in enumerate(files):
        digest.update(f"{', ' if number else ''}{json.dumps([file.path, file.size, file.tag])}".encode())
    digest.update(b"]]")
    return digest.hexdigest()[:32]


def _write_anew(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill an empty folder; leave none behind after an error, for its files may have filled the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
