"""A process with an exactly-once handler, which can end or stop itself at a given point.

The handler works for ``WORK`` seconds. ``POINT`` is one of ``POINTS``, ``AT`` counts its passages,
``HOW`` is the signal.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from reliable_mq import Message, ReliableMQ, Settings
from reliable_mq_kafka.outputs import Outputs
from reliable_mq_kafka.transactional import TransactionalIntake
from reliable_mq_kafka.transactions import Transactions

POINTS = ("handler", "ended", "produced", "offsets", "committed")
"""In the handler; before the transaction; outputs at the broker; offsets too; after the COMMIT."""


class Point:
    """Sends the process a signal when it is passed for the given time."""

    def __init__(self) -> None:
        self._name = os.environ.get("POINT", "")
        self._at = int(os.environ.get("AT", "1"))
        self._how = signal.Signals[os.environ.get("HOW", "SIGKILL")]
        self._passed = itertools.count(1)

    def passed(self, name: str) -> None:
        if name == self._name and next(self._passed) == self._at:
            logging.getLogger("program").warning("at %s: %s", name, self._how.name)
            os.kill(os.getpid(), self._how)


def before(cls: type, name: str, then: Callable[[], None]) -> None:
    inner = getattr(cls, name)

    def patched(*args: Any, **options: Any) -> Any:
        then()
        return inner(*args, **options)

    setattr(cls, name, patched)


def after(cls: type, name: str, then: Callable[[], None]) -> None:
    inner = getattr(cls, name)

    def patched(*args: Any, **options: Any) -> Any:
        result = inner(*args, **options)
        then()
        return result

    setattr(cls, name, patched)


def build(url: str, database_url: str, prefix: str) -> ReliableMQ:
    """Return an application whose handler passes numbers on.

    In a group of its own: a static member of another test would keep it waiting.
    """
    mq = ReliableMQ(Settings(broker_url=url, database_url=database_url, group=prefix))
    mq.topic(f"{prefix}-in", int, partitions=3)
    mq.topic(f"{prefix}-out", int, partitions=3)
    return mq


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    logging.getLogger("reliable_mq").setLevel(logging.DEBUG)
    point, prefix = Point(), os.environ["PREFIX"]
    before(TransactionalIntake, "membership", lambda: point.passed("ended"))
    after(Outputs, "send", lambda: point.passed("produced"))
    before(Transactions, "_commit", lambda: point.passed("offsets"))
    after(Transactions, "_commit", lambda: point.passed("committed"))
    mq = build(os.environ["URL"], os.environ["DATABASE"], prefix)

    work, handled = float(os.environ.get("WORK", "0")), itertools.count()

    @mq.handler(f"{prefix}-in", guarantee="exactly-once", concurrency=2)
    def copy(number: int, message: Message) -> None:
        mq.publish(f"{prefix}-out", message.body, key=message.key)
        time.sleep(work)
        if not next(handled):
            logging.getLogger("program").warning("handled its first")
        point.passed("handler")

    mq.run()


if __name__ == "__main__":
    main()
