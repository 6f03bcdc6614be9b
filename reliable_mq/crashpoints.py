"""Places where a test can have its process killed: ``RMQ_CRASH=<point>:<n>``.

A process with this variable kills itself, by SIGKILL, when it passes the place for the n-th time:
nothing is flushed, closed or rolled back, no ``finally`` runs. Without it a passage is the call of
a function that does nothing. The places are those between two steps of which either the first
alone or both may last.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from typing import NoReturn

from reliable_mq.errors import ConfigurationError

VARIABLE = "RMQ_CRASH"

POINTS: Mapping[str, str] = {
    "outbox.inserted": "the application's messages are in the outbox, not committed",
    "outbox.released": "a held row is back in the outbox, not committed",
    "relay.claimed": "rows of the outbox are read, nothing is sent",
    "relay.before_publish": "a batch is about to be sent",
    "publish.unconfirmed": "messages are handed to the broker, whose answer is not known",
    "publish.answered": "the broker has answered, and nobody has taken note",
    "relay.confirmed": "a batch has its outcomes, the rows are still there",
    "relay.deleted": "the rows of what was sent are (about to be) deleted, not committed",
    "relay.settled": "that deletion is committed",
    "relay.held": "a refused row has moved to the held ones, not committed",
    "relay.winding_up": "the relay stops: nothing in flight, its slots not given back",
    "consumer.received": "deliveries have arrived, nothing is done with them",
    "consumer.lost": "the broker has taken partitions away, their buffer is not dropped",
    "consumer.claimed": "the inbox row is inserted, the handler not called",
    "consumer.handled": "the handler has returned, what its session holds is not written",
    "consumer.before_commit": "inbox row and effects are written, not committed",
    "consumer.committed": "inbox row and effects are committed, nothing is acknowledged",
    "consumer.before_ack": "everything is about to be acknowledged",
    "consumer.acked": "the adapter has taken the acknowledgements",
    "consumer.draining": "a stop has come, what runs may end",
    "consumer.closing": "a stop: all is acknowledged, the subscription still open",
    "batch.claimed": "the inbox rows of a batch are inserted, no handler called",
    "batch.before_commit": "the effects of a batch are written, not committed",
    "batch.committed": "the effects of a batch are committed, nothing is acknowledged",
    "parking.written": "a delivery waits behind an earlier one of its key, not committed",
    "parking.committed": "that is committed, nothing is acknowledged",
    "failure.retry_written": "inbox and retry row of a failure are written, not committed",
    "failure.dead_written": "inbox row, dead letter and its copy are written, not committed",
    "failure.committed": "a failure is committed, nothing is acknowledged",
    "failure.conflict_written": "the dead letter of an id conflict is written, not committed",
    "failure.conflict_committed": "that dead letter is committed, nothing is acknowledged",
    "ack_first.settled": "at-most-once: acknowledged for good, the handler not called",
    "retry.locked": "a retry row is locked, the handler not called",
    "retry.begun": "at-most-once: the only attempt at a replayed message is noted and committed",
    "retry.settled": "a later attempt has succeeded and its row is deleted, not committed",
    "retry.postponed": "a later attempt has failed and its row waits on, not committed",
    "retry.buried": "a later attempt was the last, the row is a dead letter, not committed",
    "replay.written": "a dead letter has become a retry row, not committed",
    "replay.committed": "that is committed, the caller does not know",
    "discard.written": "a dead letter is deleted, not committed",
    "exactly_once.ready": "outputs and offsets are about to go into a transaction",
    "exactly_once.committed": "the transaction is committed, nobody has taken note",
}
"""Every place and what is true there. A place that is not listed cannot be passed by tests."""


class _Fuse:
    """Burns down with each passage of one place; at its end the process dies."""

    def __init__(self, point: str, passages: int) -> None:
        self._point = point
        self._left = passages
        self._lock = threading.Lock()

    def passed(self, point: str) -> None:
        if point != self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                _die(point)


def _die(point: str) -> NoReturn:
    os.write(2, f"{VARIABLE}: killed at {point}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a SIGKILL of one's own comes before kill() returns")


_fuse: _Fuse | None = None


def crash_point(point: str) -> None:
    """Die here, if that was asked for."""
    if _fuse is not None:
        _fuse.passed(point)


def arm(value: str | None) -> None:
    """Let this process die at ``<point>:<n>``, which is counted from now on; None: nowhere.

    Raises :class:`ConfigurationError` for an unknown place and a number that is not positive: a
    test that kills nobody proves nothing.
    """
    global _fuse  # noqa: PLW0603 - one for each process, as its environment
    if value is None:
        _fuse = None
        return
    point, _, passages = value.partition(":")
    if point not in POINTS:
        raise ConfigurationError(f"{VARIABLE}={value}: the points are {', '.join(sorted(POINTS))}")
    if not passages.isascii() or not passages.isdigit() or int(passages) < 1:
        raise ConfigurationError(f"{VARIABLE}={value}: write {point}:1 for the first passage")
    _fuse = _Fuse(point, int(passages))


arm(os.environ.get(VARIABLE))
