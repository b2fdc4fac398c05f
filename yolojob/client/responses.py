"""What the API server answers: jobs, or errors in words for people."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from yolojob.api.errors import ClusterError, NotFound
from yolojob.api.job import YoloTrainingJob

T = TypeVar("T")
Json = dict[str, Any]


class Broken(Exception):
    """The connection of a watch broke, or the API server has trouble of its own."""


class Expired(Exception):
    """The watch begins with a version that the API server has forgotten."""


def asked(call: Callable[[], T], name: str, namespace: str) -> T:
    """`call`, with the client's many errors in our words.

    Args:
        call: a request.
        name: of the job that it is about; may be empty.
        namespace: where that is.
    """
    try:
        return call()
    except Exception as error:
        raise translated(error, name, namespace) from error


def as_object(answer: object) -> Json:
    """A JSON object.

    Raises:
        ClusterError: something else has answered, such as a proxy that wants to know who is there.
    """
    found = answer
    if isinstance(answer, bytes):
        try:
            found = json.loads(answer)
        except ValueError:
            found = answer.decode(errors="replace")
    if isinstance(found, dict):
        return found
    raise ClusterError(f"the cluster does not answer as a Kubernetes API server does: {str(found)[:60]!r}")


def as_job(answer: object) -> YoloTrainingJob:
    """A job as the API server has it. Fields that are unknown here are left out: a newer cluster may have them.

    Raises:
        ClusterError: it cannot be read, such as one that was stored before its rules were made.
    """
    item = as_object(answer)
    try:
        return YoloTrainingJob.model_validate(item)
    except ValidationError as error:
        known = _without_unknown(item, error)
    try:
        return YoloTrainingJob.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ClusterError(
            f"{(item.get('metadata') or {}).get('name')} cannot be read: {path}: {first['msg']}; "
            f"`kubectl get ytj --output yaml` shows it as it is"
        ) from None


def _without_unknown(item: Json, error: ValidationError) -> Json:
    """The object without the fields that the error calls unknown."""
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


def events(stream: Iterator[Json], name: str, namespace: str) -> Iterator[Json]:
    """A watch's events; its errors in our words.

    Raises:
        Broken, Expired, ClusterError: as they say.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        for event in stream:
            as_object(event.get("object") if isinstance(event, dict) else event)
            yield event
    except ApiException as error:
        if error.status == 410:
            raise Expired from None
        if error.status == 429 or error.status >= 500:
            raise Broken(words(error)) from error
        raise translated(error, name, namespace) from error
    except HTTPError as error:
        raise Broken(str(translated(error, name, namespace))) from error


def translated(error: Exception, name: str, namespace: str) -> Exception:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        said = words(error)
        if error.status == 404:
            if "could not find the requested resource" in said or "page not found" in said:
                return ClusterError("the cluster does not know YoloTrainingJobs: install the operator, docs/install.md")
            return NotFound(f"{said} in namespace {namespace}" if name in said and name else said)
        return ClusterError(said)
    if isinstance(error, HTTPError):
        return ClusterError(f"the cluster does not answer: {error}")
    return error


def words(error: Exception) -> str:
    """The API server's own words, in one line."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(getattr(error, "reason", "") or error).split())[:300]
