"""Unpacking archives that anybody may have made: nothing leaves the folder, nothing but files comes out, and no more than
fits."""

from __future__ import annotations

import errno
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from yolojob.api.reasons import Reason
from yolojob_trainer.errors import BadInput

MAX_MEMBERS = 20_000_000
"""Members of one archive: twice the largest public detection set, and no way to fill a disk with names."""
BLOCK = 1 << 20
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
_NAMES = (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


def unpack(archive: Path, folder: Path, shown: str, room: Callable[[int], None]) -> None:
    """Unpack a .zip or .tar (plain or compressed) into an empty folder.

    Args:
        archive: the file.
        folder: where to; must exist.
        shown: what the user calls the archive, for messages.
        room: called with the bytes about to be written in all; raises where they do not fit.

    Raises:
        BadInput: it is no archive, is damaged, or holds what must not be unpacked.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, shown, room)
        elif tarfile.is_tarfile(archive):
            _untar(archive, folder, shown, room)
        else:
            raise BadInput(
                Reason.INVALID_ARCHIVE, f"{shown}: is neither a .zip nor a .tar, .tar.gz, .tar.bz2 or .tar.xz"
            )
    except _DAMAGED as error:
        raise BadInput(
            Reason.INVALID_ARCHIVE, f"{shown}: is damaged or of a kind that cannot be read: {error}"
        ) from error
    except OSError as error:
        # gzip and bz2 say it with a bare OSError; names that clash or are too long come with a number.
        if error.errno not in _NAMES:
            raise
        raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: cannot be unpacked: {error}") from error


def inside(name: str, shown: str) -> PurePosixPath:
    """A member's name as a path below the folder that it is unpacked into.

    Raises:
        BadInput: it leads out of it.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:(/|$)", str(path))
    if path.is_absolute() or ".." in path.parts or "\0" in name or drive:
        raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: {name!r} leads out of the data set")
    return path


def _unzip(archive: Path, folder: Path, shown: str, room: Callable[[int], None]) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        room(_counted(len(members), sum(m.file_size for m in members), shown))
        for member in members:
            target = folder / inside(member.filename, shown)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(member) as source:
                # The directory of an archive may lie about sizes: more than it says is not written.
                _copy(source, target, member.file_size, shown)


def _untar(archive: Path, folder: Path, shown: str, room: Callable[[int], None]) -> None:
    with tarfile.open(archive) as file:
        written = 0
        for count, member in enumerate(file, start=1):
            _counted(count, 0, shown)
            target = folder / inside(member.name, shown)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                # A tar has no directory to add up beforehand.
                room(member.size)
                written += member.size
                source = file.extractfile(member)
                assert source is not None
                _copy(source, target, member.size, shown)
            else:
                raise BadInput(
                    Reason.INVALID_ARCHIVE,
                    f"{shown}: {member.name!r} is a link or a device; a data set has files and folders",
                )


def _counted(members: int, size: int, shown: str) -> int:
    if members > MAX_MEMBERS:
        raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: has more than {MAX_MEMBERS} members")
    return size


def _copy(source: IO[bytes], target: Path, size: int, shown: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_dir():
        raise BadInput(
            Reason.INVALID_ARCHIVE, f"{shown}: {target.name!r} is there twice, as a file and as something else"
        )
    with target.open("wb") as out:
        for block in _blocks(source):
            size -= len(block)
            if size < 0:
                raise BadInput(Reason.INVALID_ARCHIVE, f"{shown}: {target.name!r} is larger than the archive says")
            out.write(block)


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        yield block


def content_root(folder: Path, config: str) -> Path:
    """The folder that holds the data file: many archives wrap everything in one folder of their own name."""
    if (folder / config).exists():
        return folder
    children = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX"))]
    if len(children) == 1 and (children[0] / config).exists():
        return children[0]
    return folder
