"""SIGINT and SIGTERM have one owner for as long as a driver lives, whoever else sets handlers in between.

Ray sets one for SIGTERM when it connects, and Ray Train one for SIGINT that stays when its training has ended.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_OWNED = (signal.SIGINT, signal.SIGTERM)
_is_owned = False
_stopped_by: int | None = None


def exit_code() -> int:
    """What a driver that was interrupted ends with: 143 after SIGTERM, else 130."""
    return 128 + (_stopped_by or signal.SIGINT)


@contextlib.contextmanager
def owned_signals() -> Iterator[None]:
    """For the length of a `with` SIGINT and SIGTERM raise KeyboardInterrupt in the main thread.

    Only the first of them: the way out must not be cut short, or a claim would stay.
    """
    global _is_owned
    if threading.current_thread() is not threading.main_thread() or _is_owned:
        yield
        return
    before = {number: signal.getsignal(number) for number in _OWNED}
    _is_owned = True
    retake_signals()
    try:
        yield
    finally:
        _is_owned = False
        for number, handler in before.items():
            signal.signal(number, handler)


def retake_signals() -> None:
    """To be called after what may have set handlers of its own."""
    if _is_owned and threading.current_thread() is threading.main_thread():
        for number in _OWNED:
            signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> None:
    # An exception of our own would not say it: Ray raises another on the way out of a wait.
    global _stopped_by
    _stopped_by = number
    for owned in _OWNED:
        signal.signal(owned, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: Any) -> None:
    """A handler, and not SIG_IGN: child processes would inherit that."""
