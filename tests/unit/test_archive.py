"""Archives are untrusted: unpacking yields their files and never writes elsewhere, follows links or fills the disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yolojob_trainer.data.archive import inside, unpack
from yolojob_trainer.errors import BadInput

from yolojob.api.reasons import Reason

FILES = {"data.yaml": b"names: [a]", "images/train/a.png": b"png" * 1000, "labels/train/a.txt": b""}


def fits(_bytes: int, _files: int) -> None:
    """Accept any size."""


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def tarred(path: Path, mode: Any, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, mode) as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["zip", "w:", "w:gz", "w:bz2", "w:xz"])
def test_unpack_of_every_format_restores_the_files(tmp_path: Path, mode: str) -> None:
    path, out = tmp_path / "archive", tmp_path / "out"
    out.mkdir()
    if mode == "zip":
        zipped(path, FILES)
    else:
        tarred(path, mode, [(tarfile.TarInfo(name), data) for name, data in FILES.items()])
    unpack(path, out, "it", fits)
    assert contents(out) == FILES


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "a/..", "C:\\evil", "C:/evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpack_of_a_path_outside_the_folder_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path, out = tmp_path / "archive", tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    if kind == "zip":
        zipped(path, {name: b"x"})
    else:
        tarred(path, "w", [(tarfile.TarInfo(name), b"x")])
    with pytest.raises(BadInput, match="leads out of the dataset"):
        unpack(path, out, "spec.dataset.uri: it", fits)
    assert contents(tmp_path).keys() == {"archive"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_unpack_of_a_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    path = tarred(tmp_path / "archive", "w", [(info, b"")])
    with pytest.raises(BadInput, match="link or a device"):
        unpack(path, tmp_path, "it", fits)
    assert not (tmp_path / "link").exists()


def test_unpack_of_a_bomb_is_refused_before_it_writes(tmp_path: Path) -> None:
    path, out = zipped(tmp_path / "bomb.zip", {"zeros": bytes(50 << 20)}), tmp_path / "out"
    out.mkdir()
    assert path.stat().st_size < 1 << 20

    def room(needed: int, _: int) -> None:
        if needed > 1 << 20:
            raise BadInput(Reason.NO_SPACE, "too large")

    with pytest.raises(BadInput, match="too large"):
        unpack(path, out, "it", room)
    tar = tarred(tmp_path / "bomb.tar.gz", "w:gz", [(tarfile.TarInfo("zeros"), bytes(50 << 20))])
    with pytest.raises(BadInput, match="too large"):
        unpack(tar, out, "it", room)
    assert not contents(out)


def test_unpack_of_a_zip_with_false_sizes_writes_at_most_the_declared_size(tmp_path: Path) -> None:
    path, out = zipped(tmp_path / "a.zip", {"zeros": bytes(1 << 20)}), tmp_path / "out"
    out.mkdir()
    data = bytearray(path.read_bytes())
    size = (1 << 20).to_bytes(4, "little")
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BadInput):
        unpack(path, out, "it", fits)
    assert sum(len(d) for d in contents(out).values()) <= 1000


@pytest.mark.parametrize("kind", ["zip", "tar", "text"])
def test_unpack_of_a_damaged_archive_names_it(tmp_path: Path, kind: str) -> None:
    if kind == "text":
        path = tmp_path / "a.zip"
        path.write_text("<html>Sign in</html>")
    elif kind == "zip":
        path = zipped(tmp_path / "a.zip", FILES)
        data = bytearray(path.read_bytes())
        data[60:90] = bytes(30)
        path.write_bytes(data)
    else:
        path = tarred(tmp_path / "a.tgz", "w:gz", [(tarfile.TarInfo("a"), b"a" * 100_000)])
        path.write_bytes(path.read_bytes()[:-40])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BadInput, match=r"spec.dataset.uri: it: (is|cannot)"):
        unpack(path, out, "spec.dataset.uri: it", fits)


def test_unpack_of_clashing_names_is_bad_input(tmp_path: Path) -> None:
    path, out = zipped(tmp_path / "a.zip", {"a": b"file", "a/b": b"inside it"}), tmp_path / "out"
    out.mkdir()
    with pytest.raises(BadInput):
        unpack(path, out, "it", fits)


def test_unpack_of_a_cut_zip_says_that_it_is_damaged(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", {"a": b"x" * 10_000}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="it: is damaged or incomplete"):
        unpack(tmp_path / "cut.zip", tmp_path, "it", fits)


@given(st.text(min_size=1, max_size=40))
def test_inside_with_any_name_stays_in_the_folder_or_refuses(name: str) -> None:
    folder = Path("/data/set")
    try:
        path = inside(name, "it")
    except BadInput:
        return
    assert folder in [(folder / path), *(folder / path).parents]
    assert ".." not in (folder / path).parts
