"""Servers and training processes that several tests need."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support.processes import FINISHED, ForkServers, Gang, Gangs
from support.stores import Bucket, Proxy

PROCESS_FIXTURES = {"bucket", "finished", "fork_servers", "gangs", "s3"}
"""Fixtures that start processes or servers."""
QUICK = "not processes and not torch"
"""The tests of `make quick`."""
SLOW_MODULES = ("\npytestmark = pytest.mark.processes", "\npytestmark = pytest.mark.torch")
"""Lines of the test modules without such tests."""


QUICK_EXAMPLES = 20
"""Examples that hypothesis draws for each test of `make quick`; its default, 100, applies to `make unit`."""


def pytest_configure(config: pytest.Config) -> None:
    # A limit on the time of an example, which is hypothesis' default, fails on a busy machine.
    hypothesis.settings.register_profile("patient", deadline=None)
    hypothesis.settings.load_profile("patient")
    if config.option.markexpr == QUICK:
        hypothesis.settings.register_profile("quick", max_examples=QUICK_EXAMPLES, deadline=None)
        hypothesis.settings.load_profile("quick")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave such modules out of `make quick` unread: importing torch and Ultralytics for them takes seconds."""
    if config.option.markexpr != QUICK or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text()
    return True if any(line in text for line in SLOW_MODULES) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a fixture with processes, and skip those whose packages this environment lacks."""
    without_torch = find_spec("torch") is None
    if without_torch and os.environ.get("CI"):
        raise pytest.UsageError("torch is not installed, so tests would be skipped, which CI does not allow")
    for item in items:
        if PROCESS_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.processes)
        if without_torch and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="torch is not installed: make env"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainer's cache folder, with the staged dataset; one for each process that runs tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def fork_servers() -> Iterator[ForkServers]:
    servers = ForkServers()
    yield servers
    servers.stop()


@pytest.fixture
def gangs(tmp_path: Path, cache: Path, fork_servers: ForkServers) -> Iterator[Gangs]:
    """Starts training processes whose output is in `tmp_path / "out"`."""
    gangs = Gangs(tmp_path, cache, fork_servers)
    yield gangs
    gangs.stop()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path, fork_servers: ForkServers) -> Iterator[Gang]:
    """A training of four epochs in one process that has succeeded, with a checkpoint every three epochs. Read only."""
    gangs = Gangs(tmp_path_factory.mktemp("finished"), cache, fork_servers)
    gang = gangs(1, **FINISHED)
    try:
        assert gang.wait() == [0], gang.log()
        yield gang
    finally:
        gangs.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[str, Any, dict[str, str]]]:
    """A moto server that checks credentials: (address, client, environment of a user who may do anything)."""
    import boto3  # type: ignore[import-untyped]
    from moto import settings
    from moto.core.responses import ActionAuthenticatorMixin  # type: ignore[attr-defined]
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    anybody = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
    iam = boto3.client("iam", endpoint_url=url, **anybody)
    iam.create_user(UserName="trainer")
    key = iam.create_access_key(UserName="trainer")["AccessKey"]
    allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=json.dumps(allow))
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    ActionAuthenticatorMixin.request_count = 0
    environment = {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        region_name="us-east-1",
    )
    yield url, client, environment
    server.stop()


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of this test's own; the environment leads to it."""
    import s3fs  # type: ignore[import-untyped]

    url, client, credentials = s3
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    proxy = Proxy(url)
    environment = {**credentials, "AWS_ENDPOINT_URL": proxy.url}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield Bucket(proxy, name, client, environment)
    threading.Thread(target=proxy.server.shutdown).start()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in datasets in Ultralytics' layout, by name."""
    from yolojob_trainer.data import builtin_digits  # not for `make quick`: it takes a second

    folders = {}
    for name in ("digits", "digits-seg", "digits-pose", "digits-obb"):
        folders[name] = tmp_path_factory.mktemp(name)
        builtin_digits.WRITERS[name](folders[name])
    return folders
