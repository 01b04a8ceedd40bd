"""A server of `fmwsss view` in a thread of the test, and requests to it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from fmwsss.jobs.view.serve import Served, prepare


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Viewer:
    """Asks as a browser with the cookie would; every request is a connection of its own, so threads may share it."""

    served: Served
    cookie: str = ""
    hosts: tuple[str, int] = field(init=False)

    def __post_init__(self) -> None:
        at = urlsplit(self.served.address)
        self.hosts = (str(at.hostname), int(at.port or 0))
        self.token = at.query.partition("=")[2]

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Answer:
        connection = HTTPConnection(*self.hosts, timeout=60)
        try:
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, told, response.read())
        finally:
            connection.close()

    def enter(self) -> None:
        """Takes the cookie for the token."""
        answer = self.ask("GET", f"/?token={self.token}")
        assert answer.status == 303
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    def get(self, path: str, **query: Any) -> Answer:
        return self.ask("GET", f"{path}?{urlencode(query)}" if query else path, {"cookie": self.cookie})

    def correct(self, **told: Any) -> Answer:
        headers = {"cookie": self.cookie, "x-fmwsss": "1", "content-type": "application/json"}
        return self.ask("POST", "/api/corrections", headers, json.dumps(told).encode())

    def wait_for_index(self) -> None:
        while not self.served.opened.index.snapshot.is_whole:
            assert self.served.opened.index.error is None, self.served.opened.index.error
            time.sleep(0.02)


@contextlib.contextmanager
def viewing(url: str, against: str | None = None, edit: bool = False, author: str = "ann") -> Iterator[Viewer]:
    served = prepare(url, against, edit, 0, author)
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    try:
        viewer = Viewer(served)
        viewer.enter()
        viewer.wait_for_index()
        yield viewer
    finally:
        served.server.should_exit = True
        thread.join(30)
        served.sock.close()
