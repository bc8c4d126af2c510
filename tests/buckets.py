"""A real S3 server on loopback for tests, and working copies as of several machines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Server:
    """An S3 server of this process that can be stopped and started again with what it holds.

    Attributes:
        endpoint: its address, for AWS_ENDPOINT_URL.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.port = 0
        self.start()

    def start(self) -> None:
        """Answer requests, at the same address as before."""
        module = pytest.importorskip("moto.server", reason="needs moto[server] (extra: test)")
        self.server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        host, self.port = self.server.get_host_and_port()
        self.endpoint = f"http://{host}:{self.port}"

    def stop(self) -> None:
        """Refuse connections."""
        self.server.stop()

    def client(self) -> Any:
        """boto3's client of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def read(self, bucket: str, key: str) -> bytes:
        """An object."""
        found: bytes = self.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return found

    def keys(self, bucket: str) -> list[str]:
        """Keys of all objects of a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


@contextmanager
def s3_server(bucket: str) -> Iterator[Server]:
    """A server with an empty bucket."""
    server = Server()
    server.client().create_bucket(Bucket=bucket)
    try:
        yield server
    finally:
        server.stop()


class Machines:
    """Folders of working copies, as of several machines."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch

    def on(self, name: str) -> Path:
        """Work on that machine from now on; returns its folder of working copies."""
        from cirkd_ray.remote import mirror, reading

        self.monkeypatch.setenv("CIRKD_SCRATCH", str(self.folder / name))
        self.monkeypatch.setattr(mirror, "_call", f"call of {name}")
        reading._looked.clear()
        return self.folder / name
