"""A real S3 server on the loopback device, behind a proxy that counts requests and fails on demand."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLEEXAMPLE00", "AWS_SECRET_ACCESS_KEY": "example-secret-of-the-tests"}


@dataclass
class ObjectStore:
    """The server as tests see it. Faults are keyed by the end of an object's name and happen once each, in order."""

    port: int
    upstream: int
    gets: Counter[str] = field(default_factory=Counter)  # object → GETs that reached the proxy
    puts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)  # "503", "cut", "stall", "flip", "404"; of GETs
    put_faults: dict[str, list[str]] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)  # method and object, in order
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Seconds, so that a server that stalls does not stall the tests.
            "FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 2, "retries": {"total_max_attempts": 1}}}),
        }

    def client(self) -> Any:
        """Access the server directly, bypassing the proxy."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.upstream}",
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )

    def names(self, prefix: str = "") -> list[str]:
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return sorted(row["Key"] for row in found)

    def get(self, name: str) -> bytes:
        return bytes(self.client().get_object(Bucket=BUCKET, Key=name)["Body"].read())

    def put(self, name: str, data: bytes) -> None:
        self.client().put_object(Bucket=BUCKET, Key=name, Body=data)

    def put_folder(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def take_fault(self, method: str, name: str) -> str | None:
        with self.lock:
            of_method = self.faults if method == "GET" else self.put_faults
            for end, faults in of_method.items():
                if name.endswith(end) and faults:
                    return faults.pop(0)
        return None

    def shard_gets(self) -> dict[str, int]:
        return {name: count for name, count in self.gets.items() if name.endswith(".tar")}


@contextlib.contextmanager
def running_store() -> Iterator[ObjectStore]:
    """Skips the test where the server is not installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install '.[dev]'")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    upstream = server.get_host_and_port()[1]
    store = ObjectStore(port=0, upstream=upstream)
    handler = type("Handler", (_Proxy,), {"store": store})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    store.port = proxy.server_address[1]
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    store.client().create_bucket(Bucket=BUCKET)
    try:
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def read_all_clips(url: str, cache: str, barrier: Any) -> None:
    """Read all clips once all processes are ready, for tests that start several at once."""
    import numpy as np

    from stage1.data.reader import ClipReader
    from vidshard.storage.cache import CacheConfig
    from vidshard.storage.urls import Url

    reader = ClipReader(Url(url), cache=CacheConfig(folder=Path(cache)))
    barrier.wait()
    reader.fetch_ahead(np.arange(len(reader)))
    for row in range(len(reader)):
        reader[row]


def use_store(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Point this process at the server, with short pauses between tries and all counts at zero."""
    import fsspec

    from vidshard.storage import urls

    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.config.set_conf_env(fsspec.config.conf)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the server of another test module
    monkeypatch.setattr(urls, "RETRY_SECONDS", (0.01,) * 5)
    for kept in (store.gets, store.puts, store.log, store.faults, store.put_faults):
        kept.clear()
    return store


class _Proxy(BaseHTTPRequestHandler):
    store: ObjectStore
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self._body()
        name = self.path.partition("?")[0].lstrip("/").partition("/")[2]
        with self.store.lock:
            self.store.log.append((self.command, name))
            counter = {"GET": self.store.gets, "PUT": self.store.puts}.get(self.command)
            if counter is not None and name:
                counter[name] += 1
        fault = self.store.take_fault(self.command, name) if self.command in ("GET", "PUT") else None
        if fault == "503":
            self._answer(503, [], b"<Error><Code>ServiceUnavailable</Code><Message>try later</Message></Error>")
            return
        if fault == "stall":
            time.sleep(5)
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.store.upstream, timeout=30)
        try:
            headers = {
                k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")
            }
            upstream.request(self.command, self.path, body=body, headers=headers)
            response = upstream.getresponse()
            data = response.read()
            kept = [(k, v) for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
        finally:
            upstream.close()
        if fault == "flip":  # a wrong byte that no checksum of the transport detects
            data = data[:-1] + bytes([data[-1] ^ 1])
            kept = [(k, v) for k, v in kept if not k.lower().startswith(("x-amz-checksum", "etag"))]
        if fault == "cut":
            self._answer(response.status, kept, data[: len(data) // 2], length=len(data))
            self.close_connection = True
            return
        self._answer(response.status, kept, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data) if length is None else length))
        elif not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_expect_100(self) -> bool:
        return True

    def log_message(self, *arguments: Any) -> None:
        pass
