"""Watches the jobs of a namespace: lists them, streams their changes, and reconnects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

from yolojob.api import constants
from yolojob.api.errors import ClusterError, NotFound
from yolojob.api.job import YoloTrainingJob
from yolojob.client.responses import (
    Json,
    WatchDisconnected,
    WatchExpired,
    as_job,
    as_job_or_skip,
    as_object,
    read_events,
)

Change = Literal["ADDED", "MODIFIED", "DELETED"]
"""The type of a change that a watch reports."""

CONNECT_TIMEOUT_SECONDS = 10
RESPONSE_TIMEOUT_SECONDS = 60
MAX_WATCH_SECONDS = 240
"""A watch is renewed after this time; the API server ends it after five to ten minutes anyway."""
RECONNECT_TIMEOUT_SECONDS = 60.0
"""The watch fails after this time without a connection."""
RECONNECT_INTERVAL_SECONDS = 1.0


class JobWatch:
    """Iterates over the changes of one job, or of all jobs of a namespace."""

    def __init__(
        self, objects: Any, namespace: str, name: str | None, seconds: float | None, *, must_exist: bool
    ) -> None:
        """
        Args:
            objects: kubernetes.client.CustomObjectsApi.
            namespace: namespace of the jobs.
            name: one job. None: all jobs.
            seconds: duration of the watch. None: without end.
            must_exist: the named job has existed; if it is missing, it was deleted.
        """
        self._objects = objects
        self._namespace, self._name = namespace, name
        self._must_exist = must_exist
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._version: str | None = None
        """Resource version from which to stream; None: list first."""
        self._jobs: dict[str, YoloTrainingJob] = {}
        """The jobs that were reported and not deleted, by name."""
        self._disconnected_since: float | None = None

    def changes(self) -> Iterator[tuple[Change, YoloTrainingJob]]:
        """The existing jobs as ADDED, then every change.

        Raises:
            NotFound: the named job was deleted while the watch was not connected.
            ClusterError: the API server rejects the watch, or does not answer for RECONNECT_TIMEOUT_SECONDS.
        """
        while (seconds := self._seconds_left()) > 0:
            # A stream does not report what was deleted before it started: the list does.
            source = self._list(seconds) if self._version is None else self._stream(self._version, seconds)
            try:
                for event in read_events(source, self._name or "", self._namespace):
                    self._disconnected_since = None
                    job = self._apply(event)
                    if job is not None:
                        yield event["type"], job
            except WatchExpired:
                self._version = None
            except WatchDisconnected as error:
                self._wait_to_reconnect(error)

    def _seconds_left(self) -> float:
        """Seconds for the next request; 0 at the end of the watch."""
        if self._deadline is None:
            return MAX_WATCH_SECONDS
        left = self._deadline - time.monotonic()
        return max(min(left, MAX_WATCH_SECONDS), 1.0) if left > 0 else 0.0

    def _apply(self, event: Json) -> YoloTrainingJob | None:
        """Record an event; the job to report."""
        self._version = event["object"]["metadata"]["resourceVersion"]
        if event["type"] == "BOOKMARK":
            if self._must_exist and self._name and self._name not in self._jobs:
                raise NotFound(f"{self._name} was deleted")
            return None
        job = as_job_or_skip(event["object"]) if self._name is None else as_job(event["object"])
        if job is None:
            return None
        if event["type"] == "DELETED":
            self._jobs.pop(job.metadata.name, None)
            self._must_exist = False
        else:
            self._jobs[job.metadata.name] = job
            self._must_exist = self._name is not None
        return job

    def _wait_to_reconnect(self, error: WatchDisconnected) -> None:
        """
        Raises:
            ClusterError: the connection has been missing for too long.
        """
        now = time.monotonic()
        self._disconnected_since = self._disconnected_since or now
        if now - self._disconnected_since > RECONNECT_TIMEOUT_SECONDS:
            raise ClusterError(str(error)) from error
        time.sleep(RECONNECT_INTERVAL_SECONDS)

    def _list(self, seconds: float) -> Iterator[Json]:
        """The current state as events of a watch: DELETED, ADDED, and a BOOKMARK with the version to stream from.

        Args:
            seconds: time limit of the request.
        """
        timeout = (CONNECT_TIMEOUT_SECONDS, min(RESPONSE_TIMEOUT_SECONDS, seconds))
        response = as_object(
            self._objects.list_namespaced_custom_object(*self._path, **self._selector, _request_timeout=timeout)
        )
        uids = {item["metadata"]["uid"] for item in response["items"]}
        for job in [job for job in self._jobs.values() if job.metadata.uid not in uids]:
            deleted = job.to_json()
            deleted["metadata"].setdefault("resourceVersion", "")
            yield {"type": "DELETED", "object": deleted}
        for item in response["items"]:
            yield {"type": "ADDED", "object": item}
        version = response["metadata"]["resourceVersion"]
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}

    def _stream(self, version: str, seconds: float) -> Iterator[Json]:
        """The changes after this version, for this time."""
        from kubernetes import watch

        yield from watch.Watch().stream(
            self._objects.list_namespaced_custom_object,
            *self._path,
            timeout_seconds=int(seconds),
            resource_version=version,
            _request_timeout=(CONNECT_TIMEOUT_SECONDS, seconds + RESPONSE_TIMEOUT_SECONDS),
            **self._selector,
        )

    @property
    def _path(self) -> tuple[str, str, str, str]:
        return constants.GROUP, constants.VERSION, self._namespace, constants.PLURAL

    @property
    def _selector(self) -> Json:
        return {"field_selector": f"metadata.name={self._name}"} if self._name else {}
