"""Tells a person that a run has ended: by a command of theirs, or by a POST to an address."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

from fmwsss.cluster.storage.redaction import redacted
from fmwsss.cluster.storage.spending import BudgetError
from fmwsss.jobs.config.tracking import NotifySection

PATIENCE_S = 30.0


@contextlib.contextmanager
def told_at_end(section: NotifySection, run: str) -> Iterator[None]:
    """Tells how the body of a `with` ended. What goes wrong in telling is a line, and no error.

    Args:
        section: of the run file.
        run: URL of the run folder.
    """
    status, message = "complete", "complete"
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        status = "stopped" if stopped else "budget" if isinstance(error, BudgetError) else "failed"
        message = "stopped" if stopped else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise
    finally:
        _tell(section, redacted(run), status, redacted(message))


def _tell(section: NotifySection, run: str, status: str, message: str) -> None:
    if section.command:
        about = {"FMWSSS_RUN": run, "FMWSSS_STATUS": status, "FMWSSS_MESSAGE": message}
        try:
            subprocess.run(
                shlex.split(section.command), env={**os.environ, **about}, timeout=PATIENCE_S, check=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"notify.command: {type(error).__name__}: {error}", file=sys.stderr)
    if section.url:
        body = json.dumps({"run": run, "status": status, "text": f"{run}: {message}"}).encode()
        try:
            request = urllib.request.Request(section.url, body, {"Content-Type": "application/json"})
            urllib.request.urlopen(request, timeout=PATIENCE_S).close()
        except (OSError, ValueError) as error:
            # Not the address: it may be a secret.
            print(f"notify.url: {type(error).__name__}: {getattr(error, 'reason', '')}", file=sys.stderr)
