"""Unpacks untrusted archives: only regular files, only inside the target folder, and only if they fit on the disk."""

from __future__ import annotations

import errno
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from yolojob.api.reasons import Reason
from yolojob_trainer.errors import BadInput

MAX_MEMBERS = 20_000_000
"""Members of one archive: twice the largest public detection dataset, and too few to fill a disk with names."""
COPY_BLOCK_BYTES = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)
_INVALID_NAME_ERRNOS = (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)
_SIGNATURES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
"""First bytes of a .zip, .gz, .bz2 and .xz file."""


SpaceCheck = Callable[[int, int], None]
"""Called with the numbers of bytes and files about to be written; raises an error if they do not fit."""


def unpack(archive: Path, folder: Path, shown: str, check_space: SpaceCheck, *, exclusive: bool = False) -> None:
    """Unpack a .zip or .tar (plain or compressed) into a folder.

    Args:
        archive: the file.
        folder: the target; must exist.
        shown: how messages name the archive.
        check_space: see SpaceCheck.
        exclusive: refuse files that exist, also those of the same archive; otherwise the last one counts.

    Raises:
        BadInput: it is not an archive, is damaged, or holds members that must not be unpacked.
    """
    target = _Target(folder, shown, "xb" if exclusive else "wb")
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, target, check_space)
        elif tarfile.is_tarfile(archive):
            _untar(archive, target, check_space)
        elif _begins_like_an_archive(archive):
            raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: is damaged or incomplete; create or copy it again")
        else:
            raise BadInput(
                Reason.INVALID_ARCHIVE, f"{shown}: is neither a .zip nor a .tar, .tar.gz, .tar.bz2 or .tar.xz"
            )
    except _DAMAGED as error:
        raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: is damaged or uses an unsupported format: {error}") from error
    except OSError as error:
        # gzip and bz2 report damage with an OSError without a number; conflicting or too long names have one.
        if error.errno not in _INVALID_NAME_ERRNOS:
            raise
        raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: cannot be unpacked: {error}") from error


def inside(name: str, shown: str) -> PurePosixPath:
    """Return a member's name as a path relative to the target folder.

    Args:
        name: of the member.
        shown: how messages name the archive.

    Raises:
        BadInput: the path leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:(/|$)", str(path))
    if path.is_absolute() or ".." in path.parts or "\0" in name or drive:
        raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: {name!r} leads out of the dataset")
    return path


@dataclass(frozen=True)
class _Target:
    """The folder into which an archive is unpacked."""

    folder: Path
    shown: str
    """How messages name the archive."""
    mode: Literal["wb", "xb"]
    """In which files are opened."""

    def path(self, name: str) -> Path:
        """Return the path of a member. Raises BadInput if it leads out of the folder."""
        return self.folder / inside(name, self.shown)

    def write(self, source: IO[bytes], path: Path, size: int) -> None:
        """Write a member. No more bytes are written than the archive states.

        Raises:
            BadInput: it is larger, or something is in its place.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.is_dir():
            raise self._error(f"{path.name!r} exists twice, as a file and as a folder or link")
        try:
            out = path.open(self.mode)
        except FileExistsError:
            raise self._error(f"{path.name!r} exists twice; each file needs a name of its own") from None
        with out:
            for block in _blocks(source):
                size -= len(block)
                if size < 0:
                    raise self._error(f"{path.name!r} is larger than the archive states")
                out.write(block)

    def check_count(self, members: int) -> None:
        if members > MAX_MEMBERS:
            raise self._error(f"has more than {MAX_MEMBERS} members")

    def _error(self, message: str) -> BadInput:
        return BadInput(Reason.INVALID_ARCHIVE, f"{self.shown}: {message}")


def _unzip(archive: Path, target: _Target, check_space: SpaceCheck) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        target.check_count(len(members))
        check_space(sum(m.file_size for m in members), len(members))
        for member in members:
            path = target.path(member.filename)
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(member) as source:
                target.write(source, path, member.file_size)


def _untar(archive: Path, target: _Target, check_space: SpaceCheck) -> None:
    with tarfile.open(archive) as file:
        for count, member in enumerate(file, start=1):
            target.check_count(count)
            path = target.path(member.name)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                # A tar has no directory from which the total could be computed beforehand.
                check_space(member.size, 1)
                source = file.extractfile(member)
                assert source is not None
                target.write(source, path, member.size)
            else:
                raise BadInput(
                    Reason.INVALID_ARCHIVE,
                    f"{target.shown}: {member.name!r} is a link or a device; a dataset may hold only files and folders",
                )


def _begins_like_an_archive(path: Path) -> bool:
    """Return whether a file has the signature of a format that is supported."""
    with path.open("rb") as file:
        return file.read(8).startswith(_SIGNATURES)


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(COPY_BLOCK_BYTES):
        yield block
