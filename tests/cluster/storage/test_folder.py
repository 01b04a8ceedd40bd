"""Folders on a disk and on a real S3 server behave alike; what goes wrong is one line without secrets."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pytest

from fmwsss.cluster.storage import folder as storage
from fmwsss.cluster.storage.folder import NUM_TRIES, FileError, Folder, StorageError, read_url
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.storage_errors import is_transient
from tests.support.s3_proxy import proxy_to
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

SCHEMA = pa.schema([("name", pa.string()), ("data", pa.binary()), ("sizes", pa.list_(pa.int32()))])
ROWS = [{"name": "a", "data": b"x" * 1000, "sizes": [1, 2]}, {"name": "b", "data": None, "sizes": []}]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path / "run"))
    return Folder(request.getfixturevalue("s3_url")).child(f"storage/{tmp_path.name}")


def test_files_go_in_and_come_out(folder: Folder) -> None:
    assert folder.list() == []
    folder.write("b", b"two")
    folder.write("a/deep/one.txt", b"one")
    folder.write("empty", b"")
    folder.write("b", b"2")
    assert folder.list() == ["a/deep/one.txt", "b", "empty"]
    assert [folder.read(name) for name in folder.list()] == [b"one", b"2", b""]
    assert folder.child("a").list() == ["deep/one.txt"]
    assert read_url(f"{folder.url}/b") == b"2"


def test_the_list_is_narrowed_by_a_prefix_of_names(folder: Folder) -> None:
    folder.write_many({"part-1": b"", "part-2": b"", "png/part-3": b"", "parts/x": b"", "_receipt": b""})
    assert folder.list("part-") == ["part-1", "part-2"]
    assert folder.list("p") == ["part-1", "part-2", "parts/x", "png/part-3"]
    assert folder.list("png/") == ["png/part-3"]
    assert folder.child("absent").list("p") == []


def test_a_file_is_no_folder_and_a_folder_no_file(folder: Folder) -> None:
    folder.write("a/b", b"1")
    assert folder.exists("a/b")
    assert not folder.exists("a")
    assert not folder.exists("b")


def test_what_is_deleted_is_gone_and_may_have_been_gone(folder: Folder) -> None:
    folder.write_many({f"x/{index}": b"1" for index in range(30)})
    folder.delete(["x/0", "x/1", "never/there"])
    assert len(folder.list()) == 28
    folder.child("x").delete_all()
    assert folder.list() == []
    folder.delete([])
    folder.delete_all()


def test_another_folder_object_sees_every_change(folder: Folder) -> None:
    other = pickle.loads(pickle.dumps(folder))
    assert other.list() == []
    folder.write("late", b"1")
    assert other.list() == ["late"]
    folder.delete(["late"])
    assert not other.exists("late")


def test_tables_keep_their_schema_and_their_bytes(folder: Folder) -> None:
    folder.write_table("rows.parquet", ROWS, SCHEMA)
    folder.write_table("again.parquet", pa.Table.from_pylist(ROWS, schema=SCHEMA), SCHEMA)
    table = folder.read_table("rows.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == ROWS
    assert folder.read_table("rows.parquet", columns=["sizes"]).to_pydict() == {"sizes": [[1, 2], []]}
    assert folder.read("rows.parquet") == folder.read("again.parquet")
    folder.write_table("none.parquet", [], SCHEMA)
    assert folder.read_table("none.parquet").num_rows == 0


def test_an_absent_file_is_told_apart_from_a_broken_one(folder: Folder) -> None:
    with pytest.raises(FileError, match=r"can't read .*/absent: it does not exist"):
        folder.read("absent")
    with pytest.raises(FileError, match="it does not exist"):
        folder.read_table("absent", columns=["name"])
    folder.write("broken.parquet", b"PAR1 and then something else")
    with pytest.raises(StorageError, match=r"broken\.parquet: it is no Parquet file"):
        folder.read_table("broken.parquet")


def test_a_large_file_is_not_read(folder: Folder) -> None:
    folder.write("file", b"12345")
    assert folder.read("file", max_bytes=5) == b"12345"
    with pytest.raises(FileError, match="has 5 bytes, more than the 4 that are allowed"):
        folder.read("file", max_bytes=4)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "a\0b"])
def test_no_name_leads_outside(folder: Folder, name: str) -> None:
    for call in (
        folder.read,
        folder.exists,
        folder.child,
        lambda name: folder.write(name, b""),
        lambda name: folder.delete([name]),
    ):
        with pytest.raises(ValueError, match="is no name inside"):
            call(name)


def test_paths_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("run/").url == str(tmp_path / "run")
    assert Folder(f"file://{tmp_path}/run").url == str(tmp_path / "run")
    assert Folder("~/run").url == os.path.expanduser("~/run")
    assert Folder("s3://bucket/run/").url == "s3://bucket/run"
    assert not Folder("s3://bucket/run/").is_local


def test_urls_with_credentials_are_refused_without_repeating_them() -> None:
    with pytest.raises(ValueError, match="environment variables") as caught:
        Folder("s3://key:secret@bucket/run")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="empty"):
        Folder(" ")


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path: Path) -> None:
    program = (
        "import sys; from fmwsss.cluster.storage.folder import Folder\n"
        "folder = Folder(sys.argv[1])\n"
        "for turn in range(10**6): folder.write('big', bytes([97 + turn % 2]) * 30_000_000)\n"
    )
    for delay_s in (0.0, 0.013, 0.031):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "big").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(delay_s)
        finally:
            os.killpg(writer.pid, signal.SIGKILL)
            writer.wait()
        folder = Folder(str(tmp_path))
        assert folder.list() == ["big"]
        data = folder.read("big")
        assert data in (b"a" * 30_000_000, b"b" * 30_000_000)
        (tmp_path / "big").unlink()


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^can't write .*file/below: .+$"):
        Folder(str(tmp_path / "file")).write("below", b"")


@pytest.mark.usefixtures("fresh_s3")
def test_wrong_keys_are_one_line_without_keys(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], "not-the-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    folder = Folder(s3_url).child("wrong")
    calls = [folder.list, lambda: folder.read("x"), lambda: folder.write("x", b""), lambda: folder.exists("x")]
    calls += [lambda: folder.write_many({"x": b""}), lambda: folder.delete(["x"])]
    for call in calls:
        with pytest.raises(StorageError, match="access is refused; check the credentials") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.__cause__ is None
        for secret in secrets:
            assert secret not in str(caught.value)


@pytest.mark.usefixtures("fresh_s3")
def test_no_keys_at_all_says_which_to_set(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Folder(s3_url).write("x", b"")


@pytest.mark.usefixtures("fresh_s3")
def test_a_profile_is_as_good_as_variables(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    credentials = "[team]\naws_access_key_id = {}\naws_secret_access_key = {}\n".format(*keys)
    (tmp_path / "credentials").write_text(credentials)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    region = os.environ["AWS_REGION"]
    (tmp_path / "config").write_text(f"[profile team]\nregion = {region}\nendpoint_url = {endpoint}\n")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    folder = Folder(s3_url).child("profile")
    folder.write("x", b"1")
    assert folder.read("x") == b"1"


def test_an_absent_bucket_is_named(s3_url: str) -> None:
    folder = Folder("s3://no-such-bucket/run")
    for call in (folder.list, lambda: folder.exists("x"), lambda: folder.read("x")):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket/run.*: the bucket does not exist"):
            call()


class Moody(BaseHTTPRequestHandler):
    """An object store that is out of order for its first requests."""

    protocol_version = "HTTP/1.1"
    num_bad: int
    requests: ClassVar[list[str]] = []
    mood: str

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if len(self.requests) > self.num_bad:
            self.answer(200, b"hello" if self.command == "GET" else b"")
        elif self.mood == "reset":
            self.close_connection = True
            self.connection.close()
        else:
            code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[self.mood]
            self.answer(int(self.mood), f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    do_PUT = do_GET  # noqa: N815 - named by the base class

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def moody(fresh_s3: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Moody]]:
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    Moody.requests.clear()
    yield Moody
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("mood", ["503", "500", "reset"])
def test_what_passes_is_waited_for(moody: type[Moody], mood: str) -> None:
    moody.mood, moody.num_bad = mood, 3
    assert Folder("s3://bucket").read("x") == b"hello"
    assert len(moody.requests) == moody.num_bad + 1


# aiohttp itself asks again once when a connection is cut.
@pytest.mark.parametrize(("mood", "num_tries"), [("503", NUM_TRIES), ("reset", 2 * NUM_TRIES), ("403", 1)])
def test_what_does_not_pass_is_tried_a_bounded_number_of_times(moody: type[Moody], mood: str, num_tries: int) -> None:
    moody.mood, moody.num_bad = mood, 10**6
    with pytest.raises(StorageError, match=r"^can't read s3://bucket/x: "):
        Folder("s3://bucket").read("x")
    assert len(moody.requests) == num_tries


def test_an_endpoint_without_a_server_is_named(moody: type[Moody], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"no answer at 127\.0\.0\.1:1 after 9 tries; check .*AWS_ENDPOINT_URL"):
        Folder("s3://bucket").list()


def test_a_large_file_is_one_request(moody: type[Moody]) -> None:
    moody.mood, moody.num_bad = "503", 0
    data = b"x" * 120_000_000
    Folder("s3://bucket").write("x", data)
    Folder("s3://bucket").write_many({"y": data})
    Folder("s3://bucket").read("x")
    assert moody.requests == ["PUT /bucket/x", "PUT /bucket/y", "GET /bucket/x"]


def test_a_file_is_replaced_only_by_who_read_it(folder: Folder) -> None:
    folder.write("inputs", b"first")
    assert folder.swap("inputs", b"first", b"second")
    assert not folder.swap("inputs", b"first", b"third")
    assert folder.read("inputs") == b"second"


def test_a_store_refuses_to_replace_what_changed_after_it_was_read(s3_url: str, tmp_path: Path) -> None:
    folder = Folder(s3_url).child(f"swap/{tmp_path.name}")
    folder.write("inputs", b"first")

    class Slow(Folder):
        def read(self, name: str, max_bytes: int | None = None) -> bytes:
            data = super().read(name, max_bytes)
            if data == b"first":
                folder.write(name, b"of another")
            return data

    assert not Slow(folder.url).swap("inputs", b"first", b"late")
    assert folder.read("inputs") == b"of another"


@pytest.mark.parametrize("fault", ["lost", "409"])
def test_a_conditional_write_whose_answer_is_lost_or_that_conflicts_is_done_once(
    fresh_s3: None, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Literal["lost", "409"]
) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.001)
    with proxy_to(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        folder = Folder(s3_url).child(f"once/{fault}-{tmp_path.name}")
        proxy.next_put = fault
        assert folder.create("claim", b"mine")
        assert not folder.create("claim", b"another's")
        proxy.next_put = fault
        assert folder.swap("claim", b"mine", b"mine again")
        assert proxy.next_put is None
        assert folder.read("claim") == b"mine again"
        # Each PUT once more after its fault, and the one that was refused.
        assert sum(request.startswith("PUT") for request in proxy.requests) >= 5


def test_what_may_succeed_later_is_told_by_its_class() -> None:
    """A class of one's own with the name of a transient error is none."""
    exceptions = pytest.importorskip("botocore.exceptions")
    aiohttp = pytest.importorskip("aiohttp")
    own = type("ReadTimeoutError", (Exception,), {})

    def of_status(status: int) -> Exception:
        return exceptions.ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")

    transient = [
        exceptions.ReadTimeoutError(endpoint_url="x"), exceptions.EndpointConnectionError(endpoint_url="x"),
        exceptions.ConnectTimeoutError(endpoint_url="x"), aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(), of_status(503), of_status(429), OSError(errno.EBUSY, "slow down"), TimeoutError(),
    ]  # fmt: skip
    lasting = [own(), of_status(400), of_status(403), exceptions.NoCredentialsError(), FileNotFoundError(), KeyError()]
    assert [is_transient(error) for error in transient] == [True] * len(transient)
    assert [is_transient(error) for error in lasting] == [False] * len(lasting)


def test_nothing_is_changed_where_a_link_leads_out(tmp_path: Path) -> None:
    """A run folder may come from anybody, and its links with it; the folder itself may be one."""
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    (theirs / "part-00000.parquet").write_bytes(b"precious")
    (theirs / ".part.x.tmp").write_bytes(b"precious")
    (run / "inside").mkdir(parents=True)
    (run / "stage").symlink_to(theirs)
    (run / "here").symlink_to(run / "inside")
    (tmp_path / "way").symlink_to(run)
    folder = Folder(str(tmp_path / "way"))
    stage = folder.child("stage")
    (tmp_path / "local").write_bytes(b"new")
    ways = [
        lambda: stage.write("new", b"new"), lambda: stage.write_many({"new": b"new"}),
        lambda: stage.create("new", b"new"), lambda: stage.swap("part-00000.parquet", b"precious", b"new"),
        lambda: stage.upload("new", str(tmp_path / "local")), lambda: stage.delete(["part-00000.parquet"]),
        stage.delete_all, stage.sweep, lambda: folder.write("stage/new", b"new"), lambda: Run(folder).reset("stage"),
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(StorageError, match=r"is not touched: a link in .* leads out of it"):
            way()
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == {
        "part-00000.parquet": b"precious",
        ".part.x.tmp": b"precious",
    }
    folder.write("here/new", b"new")
    assert (run / "inside" / "new").read_bytes() == b"new"
