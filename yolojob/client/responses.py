"""Converts the API server's responses: to jobs, or to errors with a message for people."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from yolojob.api.errors import ClusterError, NotFound
from yolojob.api.job import YoloTrainingJob

T = TypeVar("T")
Json = dict[str, Any]
MAX_REASON_LENGTH = 300

log = logging.getLogger(__name__)


class WatchDisconnected(Exception):
    """The connection of a watch broke, or the API server has a temporary error."""


class WatchExpired(Exception):
    """The API server no longer has the version from which the watch starts."""


def call_api(call: Callable[[], T], name: str, namespace: str) -> T:
    """The result of `call`; the Kubernetes client's errors become ClusterErrors.

    Args:
        call: sends a request.
        name: name of the job that the request is about; may be empty.
        namespace: namespace of the job.
    """
    try:
        return call()
    except Exception as error:
        raise as_cluster_error(error, name, namespace) from error


def as_object(response: object) -> Json:
    """The response as a JSON object.

    Raises:
        ClusterError: the response is something else: a proxy has answered, for example with a login page.
    """
    content = response
    if isinstance(response, bytes):
        try:
            content = json.loads(response)
        except ValueError:
            content = response.decode(errors="replace")
    if isinstance(content, dict):
        return content
    raise ClusterError(f"the cluster does not answer as a Kubernetes API server: {str(content)[:60]!r}")


def as_job(response: object) -> YoloTrainingJob:
    """The response as a job. Unknown fields are dropped: a newer cluster may have them.

    Raises:
        ClusterError: the job is invalid, for example because it was stored before a rule existed.
    """
    item = as_object(response)
    try:
        return YoloTrainingJob.model_validate(item)
    except ValidationError as error:
        known = _without_unknown_fields(item, error)
    try:
        return YoloTrainingJob.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ClusterError(
            f"{(item.get('metadata') or {}).get('name')} cannot be read: {path}: {first['msg']}; "
            f"`kubectl get ytj --output yaml` shows the stored object"
        ) from None


def as_job_or_skip(item: Json) -> YoloTrainingJob | None:
    """One of several jobs; None, with a warning, if it cannot be read: an invalid job must not hide the others."""
    try:
        return as_job(item)
    except ClusterError as error:
        log.warning("%s", error)
        return None


def _without_unknown_fields(item: Json, error: ValidationError) -> Json:
    """A copy of the object without the fields that the error reports as unknown."""
    known = copy.deepcopy(item)
    for detail in error.errors():
        if detail["type"] != "extra_forbidden":
            continue
        *path, last = detail["loc"]
        owner: Any = known
        for part in path:
            if isinstance(owner, dict):
                owner = owner.get(part)
            elif isinstance(owner, list) and isinstance(part, int) and part < len(owner):
                owner = owner[part]
        if isinstance(owner, dict):
            owner.pop(last, None)
    return known


def read_events(stream: Iterator[Json], name: str, namespace: str) -> Iterator[Json]:
    """The events of a watch.

    Args:
        stream: the Kubernetes client's events.
        name: name of the watched job; may be empty.
        namespace: namespace of the jobs.

    Raises:
        WatchDisconnected: the watch can be continued from the last version.
        WatchExpired: the watch must start again with a list.
        ClusterError: the API server rejects the watch.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        for event in stream:
            as_object(event.get("object") if isinstance(event, dict) else event)
            yield event
    except ApiException as error:
        if error.status == 410:
            raise WatchExpired from None
        if error.status == 429 or error.status >= 500:
            raise WatchDisconnected(error_message(error)) from error
        raise as_cluster_error(error, name, namespace) from error
    except HTTPError as error:
        raise WatchDisconnected(str(as_cluster_error(error, name, namespace))) from error


def as_cluster_error(error: Exception, name: str, namespace: str) -> Exception:
    """The ClusterError for an error of the Kubernetes client or of HTTP; other errors unchanged."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        message = error_message(error)
        if error.status == 404:
            if "could not find the requested resource" in message or "page not found" in message:
                return ClusterError("the cluster has no YoloTrainingJobs: install the operator, docs/install.md")
            return NotFound(f"{message} in namespace {namespace}" if name in message and name else message)
        return ClusterError(message)
    if isinstance(error, HTTPError):
        return ClusterError(f"the cluster does not answer: {error}")
    return error


def error_message(error: Exception) -> str:
    """The API server's message, in one line."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(getattr(error, "reason", "") or error).split())[:MAX_REASON_LENGTH]
