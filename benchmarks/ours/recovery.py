"""The library's processes that are killed, and those that take over from them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.child import go, report
from benchmarks.notes import HANDLED, HOLDING, Notes
from benchmarks.ours.application import GROUP, application
from reliable_mq import ReliableMQ


def _open(
    *, topic: str, partitions: int | None, settings: dict[str, Any], **where: str
) -> ReliableMQ:
    mq = application(**where, **settings)
    mq.topic(topic, partitions=partitions)
    return mq


def _forever() -> NoReturn:
    report(event="running")
    while True:
        threading.Event().wait()


def relay(**where: Any) -> NoReturn:
    """Relay until it is killed."""
    mq = _open(**where)
    go()
    with mq.running(consume=False):
        _forever()


def consume(*, folder: str, topic: str, **where: Any) -> NoReturn:
    """Handle until it is killed; who is the first to get a message to hold never returns it."""
    mq = _open(topic=topic, **where)
    notes = Notes(Path(folder) / "notes")

    @mq.handler(topic, group=GROUP)
    def handle(order: dict[str, Any]) -> None:
        number = int(order["n"])
        if order["hold"] and notes.first(Path(folder) / f"held-{number}"):
            notes.add(HOLDING, number)
            threading.Event().wait()
        notes.add(HANDLED, number)

    go()
    with mq.running(relay=False):
        _forever()
