"""Builds container images with buildah, and serves them from the cluster's registry; needs no Docker."""

from __future__ import annotations

import shutil
from pathlib import Path

from devcluster.processes import call
from devcluster.settings import CACHE, IMAGE_PREFIX, REGISTRY_PORT, STATE

BASE = "localhost/python:slim"
_CHROOT = ("--isolation=chroot", "--quiet")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base() -> None:
    """Builds a replacement for python:slim where no registry can be reached: Debian with `python` and `pip`."""
    exists = call("buildah", "inspect", "--type", "image", BASE, check=False, quiet=True)
    if exists.returncode == 0:
        return
    root = CACHE / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    packages = "--include=python3,python3-pip,python3-venv,ca-certificates"
    call("debootstrap", "--variant=minbase", packages, "bookworm", str(root), quiet=True)
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (root / "usr/bin/python").symlink_to("python3")
    for unneeded in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    recipe = CACHE / "Dockerfile.base"
    recipe.write_text(f'FROM scratch\nCOPY . /\nENV PATH={_PATH} LANG=C.UTF-8\nCMD ["python3"]\n')
    call("buildah", "bud", *_CHROOT, "--file", str(recipe), "--tag", BASE, str(root))
    shutil.rmtree(root)


def build(tag: str, arguments: list[str]) -> None:
    """Runs `buildah bud`; this machine's certificates and pip settings are mounted, not copied into the image."""
    mounted = [Path("/etc/ssl/certs"), Path("/etc/pip.conf")]
    mounts = [option for path in mounted if path.exists() for option in ("--volume", f"{path}:{path}:ro")]
    call("buildah", "bud", *_CHROOT, "--layers", *mounts, "--tag", tag, *(arguments or ["."]))


def push(image: str) -> str:
    """Pushes an image to the cluster's registry, and returns its name for a pod."""
    name = image.removeprefix("localhost/")
    target = f"docker://127.0.0.1:{REGISTRY_PORT}/{name}"
    call("buildah", "push", "--quiet", "--tls-verify=false", "--compression-format=zstd", image, target)
    return f"{IMAGE_PREFIX}/{name}"


_PAUSE = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGTERM, leave);
  signal(SIGINT, leave);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


def push_pause() -> None:
    """Builds and pushes the pause image of every pod: one static program that waits until it is terminated."""
    folder = STATE / "pause"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pause.c").write_text(_PAUSE)
    call("cc", "-static", "-Os", "-o", str(folder / "pause"), str(folder / "pause.c"))
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
    call("buildah", "bud", *_CHROOT, "--tag", "localhost/pause:1", str(folder), quiet=True)
    push("localhost/pause:1")
