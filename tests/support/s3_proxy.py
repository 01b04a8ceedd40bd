"""A proxy in front of the test S3 server: it counts requests, and can be out of order for a while or for good."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

OutOfOrder = Literal["503", "reset", "slow"]
SLOW_S = 2.0


class Proxy(ThreadingHTTPServer):
    """Hands every request on as it is: the signature holds, since it covers the name of this proxy as host.

    Attributes:
        mood: None to work, "503" to throttle, "reset" to cut connections, "slow" to hand each request on after a while,
            so that those that come together are done in another order.
        next_put: what becomes of the next PUT alone: "lost" is done and its answer cut off, "409" is a conflict.
        requests: method and path of every request, those that were refused included.
        num_refused: requests that were not handed on, or not at once.
    """

    daemon_threads = True

    def __init__(self, target_url: str, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.host = host
        target = urlsplit(target_url)
        self.target = (str(target.hostname), int(target.port or 80))
        self.mood: OutOfOrder | None = None
        self.next_put: Literal["lost", "409"] | None = None
        self.requests: list[str] = []
        self.num_refused = 0

    @property
    def url(self) -> str:
        """What clients take as AWS_ENDPOINT_URL."""
        return f"http://{self.host}:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in mid-sentence are part of the test."""


@contextlib.contextmanager
def proxy_to(target_url: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy that listens for the length of a `with`."""
    proxy = Proxy(target_url, host)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        body = self._body()
        self.server.requests.append(f"{self.command} {self.path}")
        if self.command == "PUT" and self.server.next_put:
            put, self.server.next_put = self.server.next_put, None
            if put == "409":
                self._answer(409, [], b"<Error><Code>ConditionalRequestConflict</Code><Message>no</Message></Error>")
                return
            self._hand_on(body, is_answered=False)
            self._cut()
            return
        if self.server.mood is None:
            self._hand_on(body)
            return
        self.server.num_refused += 1
        if self.server.mood == "slow":
            time.sleep(random.uniform(0, SLOW_S))
            self._hand_on(body)
        elif self.server.mood == "503":
            self._answer(
                503, [], b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            )
        else:
            self._cut()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - named by the base class

    def _cut(self) -> None:
        # With no time to linger the kernel sends a reset, not an end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _body(self) -> bytes:
        """The body as it came over the wire, chunks and all."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        raw = b""
        while True:
            line = self.rfile.readline()
            size = int(line.partition(b";")[0], 16)
            raw += line + self.rfile.read(size + 2)
            if size == 0:
                return raw

    def _hand_on(self, body: bytes, is_answered: bool = True) -> None:
        connection = http.client.HTTPConnection(*self.server.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read()
            if is_answered:
                self._answer(response.status, response.getheaders(), answer)
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        kept = {
            name.lower(): value for name, value in headers if name.lower() not in ("transfer-encoding", "connection")
        }
        if self.command != "HEAD":
            kept["content-length"] = str(len(body))
        for name, value in kept.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass
