"""`fmwsss view RUN`: the server, on this machine alone."""

from __future__ import annotations

import getpass
import socket
import webbrowser
from dataclasses import dataclass

import uvicorn

from fmwsss.core.errors import InputError
from fmwsss.jobs.view.app import ViewApp
from fmwsss.jobs.view.editing import Editing
from fmwsss.jobs.view.guard import Guard, new_token
from fmwsss.jobs.view.opened_run import OpenedRun

HOST = "127.0.0.1"
BACKLOG = 256


@dataclass(frozen=True)
class Served:
    """A server that is ready to start.

    Attributes:
        opened: the run.
        address: with the token.
        server: of uvicorn; `run` takes `sockets`.
        sock: that it listens at.
    """

    opened: OpenedRun
    address: str
    server: uvicorn.Server
    sock: socket.socket

    def run(self) -> None:
        """Serves until it is told to stop."""
        self.server.run(sockets=[self.sock])


def prepare(url: str, against: str | None, edit: bool, port: int, author: str | None) -> Served:
    """Opens a run and a port, and begins to read the run's index.

    Args:
        url: a run folder, a path or a URL.
        against: another run, to compare with.
        edit: whether corrections may be written.
        port: of this machine; 0 for any that is free.
        author: who corrects; None for the name of the user.

    Returns:
        A server that listens and does not answer yet.

    Raises:
        InputError: there is no run, or the port is taken.
    """
    sock = _listening(port)
    port = sock.getsockname()[1]
    opened = OpenedRun(url)
    app = ViewApp(opened, OpenedRun(against) if against else None, edit)
    token = new_token()
    routes = Editing(opened, author or getpass.getuser()).routes() if edit else ()
    # With another run the index is read on the way to the comparison.
    (app.comparison or opened.index).start()
    # Addresses hold ids, and the first one the token: none of them is logged.
    config = uvicorn.Config(
        Guard(app.starlette(routes), token, port), log_level="warning", access_log=False, lifespan="off",
        server_header=False,
    )  # fmt: skip
    return Served(opened, f"http://{HOST}:{port}/?token={token}", uvicorn.Server(config), sock)


def run(
    url: str, against: str | None = None, edit: bool = False, port: int = 0, author: str | None = None,
    open_browser: bool = False,
) -> None:  # fmt: skip
    """Serves a run until it is interrupted; prints the address with the token.

    Args:
        url: a run folder, a path or a URL.
        against: another run, to compare with.
        edit: whether corrections may be written.
        port: of this machine; 0 for any that is free.
        author: who corrects; None for the name of the user.
        open_browser: whether to open the address in a browser.

    Raises:
        InputError: there is no run, or the port is taken.
    """
    served = prepare(url, against, edit, port, author)
    print(f"{served.opened.run.folder.url}: {served.address}", flush=True)
    print("corrections go to review/ of the run" if edit else "read only: --edit allows corrections", flush=True)
    print("Ctrl-C ends it", flush=True)
    if open_browser:
        webbrowser.open(served.address)
    served.run()


def _listening(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(BACKLOG)  # the address that is printed is one that answers
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of this machine can't be used ({error}); leave --port out for any") from None
    return sock
