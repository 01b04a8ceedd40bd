"""Heads of Ray clusters as processes of their own, with a token, for tests of what comes from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def token_environment(folder: Path) -> dict[str, str]:
    """The environment of a cluster's programs: a token in `folder`, and this Python's commands found first."""
    token = folder / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    return {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@contextlib.contextmanager
def serve_head(options: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start --head` for the length of a `with`; afterwards nothing of it is left, neither processes nor files."""
    # Sockets of the head live below its folder, and their paths may not be long.
    folder = Path("/tmp") / f"ray-head-{os.getpid()}-{free_port()}"
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", *options]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["pkill", "-9", "-f", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
