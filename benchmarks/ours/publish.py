"""What a message costs the transaction it is published in: business writes with and without.

Everything runs in one process and in short turns, because the differences are small.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from benchmarks.child import Clock, go
from benchmarks.effects import Base, Effect, effects
from benchmarks.ours.application import application
from benchmarks.workload import BODY_BYTES
from reliable_mq import ReliableMQ

_ONE = effects.insert().inline()
_TURN = 50
_THREADS = 4
WARM_UP = 20
MESSAGES = (0, 1, 5)

Work = Callable[[int], None]


def payload(n: int) -> dict[str, Any]:
    """Return a message of about a KiB."""
    return {"n": n, "customer": f"customer-{n % 1000}", "note": "x" * (BODY_BYTES - 60)}


class Works(ABC):
    """The transactions that are compared."""

    def __init__(self, mq: ReliableMQ, topic: str) -> None:
        self._mq = mq
        self._topic = topic
        self._engine = mq.store.engine

    def core(self, messages: int) -> Work:
        """One INSERT by Core, and so many messages."""

        def work(n: int) -> None:
            with self._engine.begin() as connection:
                connection.execute(_ONE, {"n": n, "customer": f"customer-{n}", "amount": n})
                if messages:
                    self._append(connection, n, messages)

        return work

    def orm(self, messages: int) -> Work:
        """One mapped object, and so many messages."""

        def work(n: int) -> None:
            with Session(self._engine) as session, session.begin():
                session.add(Effect(n=n, customer=f"customer-{n}", amount=n))
                if messages:
                    self._append(session, n, messages)

        return work

    @abstractmethod
    def _append(self, target: Connection | Session, n: int, messages: int) -> None:
        """Put so many messages into the transaction of *target*."""


class _Published(Works):
    def _append(self, target: Connection | Session, n: int, messages: int) -> None:
        for _ in range(messages):
            order = payload(n)
            self._mq.publish(self._topic, order, key=order["customer"], session=target)


def transactions(*, database_url: str, topic: str, count: int, style: str) -> dict[str, Any]:
    """Return seconds for *count* transactions of each kind, taken in turns."""
    return compare(_Published, database_url=database_url, topic=topic, count=count, style=style)


def compare(
    kind: type[Works], *, database_url: str, topic: str, count: int, style: str
) -> dict[str, Any]:
    """Return seconds for *count* transactions with no message, one and five, taken in turns."""
    # The relay is another process; nothing is sent here.
    with application(database_url=database_url, broker_url="sql://") as mq:
        mq.declare()
        Base.metadata.create_all(mq.store.engine)
        works = kind(mq, topic)
        made = {
            str(messages): {"core": works.core, "orm": works.orm}[style](messages)
            for messages in MESSAGES
        }
        for work in made.values():
            for n in range(WARM_UP):
                work(n)
        go()
        return _in_turns(made, count)


def _in_turns(kinds: dict[str, Work], count: int) -> dict[str, Any]:
    wall = dict.fromkeys(kinds, 0.0)
    done = 0
    while done < count:
        for name, work in kinds.items():
            started = time.perf_counter()
            for n in range(_TURN):
                work(done + n)
            wall[name] += time.perf_counter() - started
        done += _TURN
    return {"count": done, "wall": wall}


def appends(*, database_url: str, topic: str, count: int, hints: bool) -> dict[str, Any]:
    """Return the seconds for *count* transactions with a message each, on four threads."""
    with application(database_url=database_url, broker_url="sql://") as mq:
        mq.declare()
        Base.metadata.create_all(mq.store.engine)
        if not hints:
            mq._runtime.notifier.close()  # what the library starts by itself has no switch
        work = _Published(mq, topic).core(1)
        work(0)
        go()
        clock = Clock()
        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(_repeat, work, count // _THREADS) for _ in range(_THREADS)]:
                done.result()
        return {"count": count // _THREADS * _THREADS, **clock.read()}


def _repeat(work: Work, times: int) -> None:
    for n in range(times):
        work(n)
