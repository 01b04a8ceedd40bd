"""A command and an address are told how a run ended; neither can spoil it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fmwsss.cluster.storage.spending import BudgetError
from fmwsss.core.errors import InputError
from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.tracking import NotifySection
from fmwsss.jobs.notify import told_at_end
from fmwsss.jobs.steps import NOT_KEPT

WRITE = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"


@pytest.fixture
def heard() -> Iterator[tuple[str, list[dict]]]:
    """An address, and what was posted to it."""
    posted: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret", posted
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, "complete", "complete"),
        (InputError("images: none"), "failed", "InputError: images: none"),
        (BudgetError("the budget is spent: 3 of 3"), "budget", "BudgetError: the budget is spent: 3 of 3"),
        (KeyboardInterrupt(), "stopped", "stopped"),
    ],
)
def test_both_are_told_how_it_ended(
    error: BaseException | None, status: str, message: str, tmp_path: Path, heard: tuple[str, list[dict]]
) -> None:
    url, posted = heard
    (tmp_path / "write.py").write_text(WRITE)
    command = f"'{sys.executable}' '{tmp_path}/write.py' '{tmp_path}/told.json'"
    section = NotifySection(command=command, url=url)
    if error is None:
        with told_at_end(section, "runs/a"):
            pass
    else:
        with pytest.raises(type(error)), told_at_end(section, "runs/a"):
            raise error
    told = json.loads((tmp_path / "told.json").read_text())
    about = {key: told[f"FMWSSS_{key}"] for key in ("RUN", "STATUS", "MESSAGE")}
    assert about == {"RUN": "runs/a", "STATUS": status, "MESSAGE": message}
    assert posted == [{"run": "runs/a", "status": status, "text": f"runs/a: {message}"}]


def test_nobody_there_is_a_line_without_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    with told_at_end(NotifySection(command="no-such-command", url="http://127.0.0.1:1/secret"), "runs/a"):
        pass
    told = capsys.readouterr().err
    assert "notify.command: FileNotFoundError" in told
    assert "notify.url: URLError" in told
    assert "secret" not in told


def test_a_run_folder_holds_neither_commands_nor_addresses() -> None:
    config = load_config("demo", ["notify.command=rm", "notify.url=https://x/secret", "tracking.mlflow=http://m"])
    kept = config.model_dump(mode="json", exclude=NOT_KEPT)
    assert not {"notify", "tracking"} & kept.keys()
    assert "secret" not in json.dumps(kept)
