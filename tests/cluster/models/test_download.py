"""Fetching from servers that break off, lie about the length, or cannot begin in the middle."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmwsss.cluster.models import download as downloads
from fmwsss.cluster.models import known_weights
from fmwsss.cluster.models.download import DownloadError, download
from fmwsss.cluster.models.known_weights import KnownWeights
from fmwsss.jobs.cli import app

DATA = bytes(range(256)) * 4096  # a MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Server:
    """What a server does wrong, and what it was asked for.

    Attributes:
        send: bytes of each answer that are sent before the connection is closed; None for all.
        has_ranges: whether it can begin in the middle.
        lie: added to the length that it tells.
        data: what it has.
        refusals: codes of the first answers.
        asked: the ranges that it was asked for.
    """

    send: int | None = None
    has_ranges: bool = True
    lie: int = 0
    data: bytes = DATA
    refusals: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Server], Server]]:
    monkeypatch.setattr(downloads, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started: list[ThreadingHTTPServer] = []

    def start(about: Server) -> Server:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                about.asked.append(wanted)
                if about.refusals:
                    return self.send_error(about.refusals.pop(0))
                begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and about.has_ranges else 0
                if begin and begin >= len(about.data):
                    return self.send_error(416)
                self.send_response(206 if wanted and about.has_ranges else 200)
                self.send_header("Content-Length", str(len(about.data) - begin + about.lie))
                if wanted and about.has_ranges:
                    total = len(about.data) + about.lie
                    self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
                self.end_headers()
                end = len(about.data) if about.send is None else begin + about.send
                self.wfile.write(about.data[begin:end])
                return None

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        about.url = f"http://127.0.0.1:{server.server_port}/w.pth"
        return about

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_connection_that_breaks_is_gone_on_with(serve: Callable[[Server], Server], tmp_path: Path) -> None:
    server = serve(Server(send=300_000))
    seen: list[tuple[int, int | None]] = []
    download(server.url, tmp_path / "w", SHA256, lambda *told: seen.append(told))
    assert (tmp_path / "w").read_bytes() == DATA
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert seen[-1] == (len(DATA), len(DATA))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]


def test_a_later_call_goes_on_with_what_an_earlier_one_got(serve: Callable[[Server], Server], tmp_path: Path) -> None:
    broken = serve(Server(send=300_000, has_ranges=False))
    with pytest.raises(DownloadError, match="300000 bytes are here and the next try goes on from there"):
        download(broken.url, tmp_path / "w", SHA256)
    assert broken.asked == [None, "bytes=300000-", "bytes=300000-"]
    whole = serve(Server())
    download(whole.url, tmp_path / "w", SHA256)
    assert (tmp_path / "w").read_bytes() == DATA
    assert whole.asked == ["bytes=300000-"]


def test_a_server_without_ranges_begins_anew(serve: Callable[[Server], Server], tmp_path: Path) -> None:
    (tmp_path / ".w.part").write_bytes(DATA[:1000])
    server = serve(Server(has_ranges=False))
    download(server.url, tmp_path / "w", SHA256)
    assert (tmp_path / "w").read_bytes() == DATA
    assert len(server.asked) == 1


@pytest.mark.parametrize("lie", [5000, -5000])
def test_a_server_that_lies_about_the_length(lie: int, serve: Callable[[Server], Server], tmp_path: Path) -> None:
    server = serve(Server(lie=lie))
    if lie > 0:  # what came is whole, whatever it says
        download(server.url, tmp_path / "w", SHA256)
        assert (tmp_path / "w").read_bytes() == DATA
    else:
        cut = hashlib.sha256(DATA[:lie]).hexdigest()
        with pytest.raises(DownloadError, match=f"gives has sha256 {cut} .{len(DATA) + lie} bytes. and not {SHA256}"):
            download(server.url, tmp_path / "w", SHA256)
        assert list(tmp_path.iterdir()) == []


def test_pieces_of_another_file_are_thrown_away(serve: Callable[[Server], Server], tmp_path: Path) -> None:
    (tmp_path / ".w.part").write_bytes(b"another file")
    server = serve(Server())
    download(server.url, tmp_path / "w", SHA256)
    assert server.asked == ["bytes=12-", None]
    (tmp_path / ".x.part").write_bytes(DATA + b"and more")
    download(server.url, tmp_path / "x", SHA256)
    assert (tmp_path / "w").read_bytes() == (tmp_path / "x").read_bytes() == DATA


def test_what_may_pass_is_tried_again_and_what_will_not_is_told(
    serve: Callable[[Server], Server], tmp_path: Path
) -> None:
    server = serve(Server(refusals=[503, 429]))
    download(server.url, tmp_path / "w", SHA256)
    assert len(server.asked) == 3
    missing = serve(Server(refusals=[404]))
    with pytest.raises(DownloadError, match="could not be fetched: the server answers 404"):
        download(missing.url, tmp_path / "x", SHA256)
    assert len(missing.asked) == 1


def test_the_command_fetches_known_names_and_what_a_run_file_names(
    serve: Callable[[Server], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = serve(Server(send=700_000))
    table = (KnownWeights("sam", "vit_b", None, server.url, SHA256),)
    monkeypatch.setattr(known_weights, "KNOWN_WEIGHTS", table)
    path = tmp_path / "cache" / "fmwsss" / "weights" / f"{SHA256}.pth"
    fetched = CliRunner().invoke(app, ["fetch", "vit_b"])
    assert fetched.exit_code == 0, fetched.output
    assert f"vit_b: fetched, 1.0 MiB, {path}" in fetched.output
    assert path.read_bytes() == DATA
    path.write_bytes(b"damaged")
    demo = Path(__file__).parents[3] / "configs" / "demo.yaml"
    (tmp_path / "mine.yaml").write_text(f"base: {demo}\nsam: {{model: vit_b}}\n")
    assert CliRunner().invoke(app, ["fetch", str(tmp_path / "mine.yaml")]).exit_code == 0
    assert path.read_bytes() == DATA
    again = CliRunner().invoke(app, ["fetch", "vit_b"])
    assert f"vit_b: is here, {path}" in again.output
    unknown = CliRunner().invoke(app, ["fetch", "vit_bb"])
    assert unknown.exit_code == 2
    assert "there are no weights called vit_bb, did you mean vit_b?" in unknown.output
