"""Locks between test processes that share one cluster.

They are flock(2) locks, which the kernel releases when a process ends, however it ends. A test holds the cluster with
others (`shared`) or alone (`exclusive`); beside others it may hold a named resource alone. A test that waits for the
whole cluster keeps later tests from starting.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock on this file, with others or alone."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


class ClusterLocks:
    """The locks of one cluster. A process must not take the cluster twice: it would wait for itself."""

    def __init__(self, kubeconfig: Path) -> None:
        name = hashlib.sha256(str(kubeconfig.resolve()).encode()).hexdigest()[:16]
        self._folder = Path(tempfile.gettempdir()) / f"yolojob-test-locks-{os.getuid()}" / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self._folder / name

    @contextmanager
    def shared(self, resources: Iterable[str] = ()) -> Iterator[None]:
        """Use the cluster beside other tests, and these resources alone. The order of the resources prevents
        deadlocks.
        """
        with ExitStack() as stack:
            with locked(self.path("entry")):
                stack.enter_context(locked(self.path("cluster"), shared=True))
            for resource in sorted(set(resources)):
                stack.enter_context(locked(self.path(f"resource-{resource}")))
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Use the cluster alone."""
        with ExitStack() as stack:
            with locked(self.path("entry")):
                stack.enter_context(locked(self.path("cluster")))
            yield
