"""Calls of the client's that may fail, made so that nothing of a failure is kept."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import KafkaException

from reliable_mq_kafka.errors import error_of

_PAUSE = 0.05


def caught(call: Callable[[], object]) -> Exception | None:
    """Make a call; return what it raised, without its traceback, or None.

    So that whatever is done about it is done outside of an ``except``: where a call of
    confluent-kafka (2.16, its C code) raises, the exception that is being handled at that time,
    another one, is never freed, nor are the frames of its traceback, and the clients in these,
    with their threads.
    """
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the caller has it
        return error.with_traceback(None)
    return None


def repeat(call: Callable[[float], None], deadline: float) -> None:
    """Make a call with the seconds that are left, and go on with it as long as it may be."""
    while True:
        left = max(0.1, deadline - time.monotonic())
        try:
            return call(left)
        except KafkaException as error:
            if not error_of(error).retriable() or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)
