"""Servers and training processes that several tests need."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Gang, tiny
from support.stores import Bucket, Proxy


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Staged data, kept for the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def gangs(tmp_path: Path, cache: Path) -> Iterator[Any]:
    """Starts training processes: `gangs(world_size, mode, environment=..., **spec)`."""
    made: list[Gang] = []

    def start(
        world_size: int, mode: str = "samples", *, environment: dict[str, str] | None = None, **spec: Any
    ) -> Gang:
        gang = Gang(tmp_path, cache, tiny(**spec), world_size, mode, environment or {})
        made.append(gang)
        return gang

    yield start
    for gang in made:
        for process in gang.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[str, Any, dict[str, str]]]:
    """A moto server that checks credentials: (address, client, environment of a user who may do anything)."""
    import boto3
    from moto import settings
    from moto.core.responses import ActionAuthenticatorMixin
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
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """A bucket of this test's own; the environment leads to it."""
    import s3fs

    url, client, credentials = s3
    name = f"b{abs(hash(request.node.nodeid))}"
    client.create_bucket(Bucket=name)
    proxy = Proxy(url)
    environment = {**credentials, "AWS_ENDPOINT_URL": proxy.url}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield Bucket(proxy, name, client, environment)
    threading.Thread(target=proxy.server.shutdown).start()
    s3fs.S3FileSystem.clear_instance_cache()
