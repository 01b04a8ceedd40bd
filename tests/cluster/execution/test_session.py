"""Ray that does not come up at once, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from fmwsss.cluster.execution import session as room
from fmwsss.cluster.execution.session import SessionError, session

# What Ray 2.60 raises, bare, when a machine is too busy.
SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed")


@pytest.mark.parametrize("num_failures", [0, 1, 2, 3])
def test_a_node_that_starts_slowly_is_started_again(monkeypatch: pytest.MonkeyPatch, num_failures: int) -> None:
    starts: list[dict[str, Any]] = []

    def start(**settings: Any) -> None:
        starts.append(settings)
        if len(starts) <= num_failures:
            raise SLOW

    monkeypatch.setattr(room.ray, "init", start)
    monkeypatch.setattr(room.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if num_failures < room.NUM_STARTS:
        with session(num_cpus=2):
            pass
        assert len(starts) == num_failures + 1
        assert all(settings["num_cpus"] == 2 for settings in starts)
    else:
        with pytest.raises(SessionError, match="did not start on this machine, tried 3 times"), session():
            pass


def test_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**settings: Any) -> None:
        raise RuntimeError("a wrong version")

    monkeypatch.setattr(room.ray, "init", start)
    monkeypatch.setattr(room.ray, "is_initialized", lambda: False)
    with pytest.raises(SessionError, match=r"^Ray does not start: a wrong version$"), session():
        pass


def test_an_address_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**settings: Any) -> None:
        raise ConnectionError("ray is not running\nmore")

    monkeypatch.setattr(room.ray, "init", start)
    monkeypatch.setattr(room.ray, "is_initialized", lambda: False)
    sentence = r"no Ray cluster answers at 10\.0\.0\.1:6379: ray is not running$"
    with pytest.raises(SessionError, match=sentence), session("10.0.0.1:6379"):
        pass
