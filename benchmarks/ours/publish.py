"""What a message costs the transaction it is published in: business writes with and without.

Everything runs in one process and in short turns, because the differences are small.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def _payload(n: int) -> dict[str, Any]:
    return {"n": n, "customer": f"customer-{n % 1000}", "note": "x" * (BODY_BYTES - 60)}


class _Works:
    """The transactions that are compared."""

    def __init__(self, mq: ReliableMQ, topic: str) -> None:
        self._mq = mq
        self._topic = mq.topic(topic)
        self._engine = mq.store.engine

    def core(self, messages: int) -> Work:
        """One INSERT by Core, and so many messages."""

        def work(n: int) -> None:
            with self._engine.begin() as connection:
                connection.execute(_ONE, {"n": n, "customer": f"customer-{n}", "amount": n})
                for _ in range(messages):
                    self._publish(n, connection)

        return work

    def orm(self, messages: int) -> Work:
        """One mapped object, and so many messages."""

        def work(n: int) -> None:
            with Session(self._engine) as session, session.begin():
                session.add(Effect(n=n, customer=f"customer-{n}", amount=n))
                for _ in range(messages):
                    self._publish(n, session)

        return work

    def _publish(self, n: int, session: Any) -> None:
        payload = _payload(n)
        self._mq.publish(self._topic, payload, key=payload["customer"], session=session)


def transactions(*, database_url: str, topic: str, count: int, style: str) -> dict[str, Any]:
    """Return seconds for *count* transactions of each kind, taken in turns."""
    # The relay is another process; nothing is sent here.
    with application(database_url=database_url, broker_url="sql://") as mq:
        mq.declare()
        Base.metadata.create_all(mq.store.engine)
        works = _Works(mq, topic)
        kinds = {
            str(messages): {"core": works.core, "orm": works.orm}[style](messages)
            for messages in MESSAGES
        }
        for work in kinds.values():
            for n in range(WARM_UP):
                work(n)
        go()
        return _in_turns(kinds, count)


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
        work = _Works(mq, topic).core(1)
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
