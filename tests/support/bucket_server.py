"""An S3 server for pods of the test cluster: `python -m support.bucket_server HOST PORT BUCKET FOLDER`.

It answers with 503 while the file FOLDER/refuse exists, and copies every object whose key has the part /trace/ to
FOLDER/KEY, so that a test reads the traces of a job as it reads those on a volume.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

from support.stores import Proxy

COPY_SECONDS = 1.0


def copy_traces(client: Any, bucket: str, folder: Path, copied: dict[str, str]) -> None:
    """Copies the traces that have changed.

    Args:
        client: of boto3.
        bucket: name of the bucket.
        folder: where the copies go.
        copied: ETag of each copied object; updated.
    """
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            key, etag = item["Key"], item["ETag"]
            if "/trace/" in key and copied.get(key) != etag:
                target = folder / key
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
                copied[key] = etag


def main(host: str, port: int, bucket: str, folder: Path) -> None:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    upstream = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    client = boto3.client(
        "s3", endpoint_url=upstream, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)
    proxy = Proxy(upstream, host, port)
    proxy.refuse = lambda _method, _path: 503 if (folder / "refuse").exists() else 0
    copied: dict[str, str] = {}
    while True:
        copy_traces(client, bucket, folder, copied)
        proxy.requests.clear()
        time.sleep(COPY_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
