"""Waiting for what must come, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from reliable_mq import ReliableMQ

T = TypeVar("T")

DEADLINE = 120.0
_PAUSE = 0.02


def until(condition: Callable[[], T], what: object = "", *, seconds: float = DEADLINE) -> T:
    """Return the first true value of *condition*; ``AssertionError`` where it does not come.

    *what*, or what it returns, is shown then.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            shown = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {shown or 'the condition'}")
        time.sleep(_PAUSE)
    return found


def until_handed_back(mq: ReliableMQ, topic: str, count: int) -> None:
    """Wait until at least *count* messages that nobody holds wait for the group "billing".

    RabbitMQ takes back what a process held some time after its end. Until then another process
    does not see it, and has nothing to do.
    """
    until(lambda: (mq.status().groups[topic, "billing"].lag or 0) >= count, mq.status)
