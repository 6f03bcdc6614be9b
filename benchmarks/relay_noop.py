"""Rows a second through the relay, beside those of a bare "select and delete" loop.

The broker confirms everything at once (or after ``--publish-ms``), so what is measured is the
relay's own cost on this database. Both loops take turns over equal tables in one run, because
only their ratio means anything on a shared machine::

    python benchmarks/relay_noop.py postgresql+psycopg://app:app@127.0.0.1/app

Creates and drops tables whose names begin with ``bench_relay_``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

from sqlalchemy import BigInteger, any_, bindparam, delete, insert, select
from sqlalchemy.dialects.postgresql import ARRAY

from reliable_mq.adapter import SENT, Outcome
from reliable_mq.clock import SystemClock
from reliable_mq.events import Events
from reliable_mq.message import Message
from reliable_mq.relay import Relay
from reliable_mq.settings import RelaySettings, Settings
from reliable_mq.store import Store
from reliable_mq.store.tables import OUTBOX_SLOTS, slot_of

PREFIX = "bench_relay_"
CHUNK = 5000


class InstantBroker:
    """Confirms everything, after *delay* seconds for each call."""

    name = "instant"

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Answer like a broker that has everything at once."""
        if self.delay:
            time.sleep(self.delay)
        return [SENT] * len(messages)


def fill(store: Store, rows: int, keys: int, body: bytes) -> None:
    """Commit *rows* messages, in transactions of a few thousand."""
    for first in range(0, rows, CHUNK):
        batch = []
        for n in range(first, min(first + CHUNK, rows)):
            key = f"key-{n % keys}"
            batch.append(
                {
                    "slot": slot_of(key, str(n), OUTBOX_SLOTS),
                    "message_id": f"message-{n:030d}",
                    "topic": "orders",
                    "message_key": key.encode(),
                    "body": body,
                    "headers": b"[]",
                    "content_type": "application/json",
                    "message_time": 1_700_000_000_000_000,
                    "created_at": 1_700_000_000_000_000,
                }
            )
        with store.transaction() as connection:
            connection.execute(insert(store.tables.outbox), batch)


def bare_loop(store: Store, batch_size: int, delay: float) -> int:
    """What one would write without any promise: the oldest rows, publish, delete."""
    outbox = store.tables.outbox
    read = select(outbox).order_by(outbox.c.id).limit(batch_size)
    if store.dialect.name == "postgresql":
        gone = delete(outbox).where(outbox.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger))))
    else:
        gone = delete(outbox).where(outbox.c.id.in_(bindparam("ids", expanding=True)))
    broker, done = InstantBroker(delay), 0
    with store.engine.connect() as connection:
        while rows := connection.execute(read).all():
            connection.rollback()
            broker.publish(rows, 1.0)  # type: ignore[arg-type]
            connection.execute(gone, {"ids": [row.id for row in rows]})
            connection.commit()
            done += len(rows)
    return done


def stepped(store: Store, batch_size: int, delay: float) -> int:
    """The relay without a second thread for settling."""
    relay = make_relay(store, batch_size, delay)
    done = 0
    while (counts := relay.step()).moved:
        done += counts.sent
    relay.close()
    return done


def overlapped(store: Store, batch_size: int, delay: float) -> int:
    """The relay as it runs."""
    relay = make_relay(store, batch_size, delay)
    done = 0
    with relay._settler.beside():
        while (counts := relay.step()).moved:
            done += counts.sent
    relay.close()
    return done


def make_relay(store: Store, batch_size: int, delay: float) -> Relay:
    """Return a relay of its own name, so that no lease is left from the one before."""
    return Relay(
        store,
        InstantBroker(delay),  # type: ignore[arg-type]
        settings=Settings(relay=RelaySettings(batch_size=batch_size)),
        events=Events(),
        clock=SystemClock(),
        instance=f"bench-{os.urandom(8).hex()}",
    )


LOOPS: dict[str, Callable[[Store, int, float], int]] = {
    "bare select+delete": bare_loop,
    "relay, one thread": stepped,
    "relay": overlapped,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("database_url")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--body", type=int, default=1000, help="bytes")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--publish-ms", type=float, default=0.0)
    options = parser.parse_args()

    store = Store(database_url=options.database_url, table_prefix=PREFIX, adapter="instant")
    store.create()
    rates: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(options.rounds):
        for name, loop in LOOPS.items():
            fill(store, options.rows, options.keys, os.urandom(options.body))
            started = time.perf_counter()
            done = loop(store, options.batch, options.publish_ms / 1000)
            rates[name].append(done / (time.perf_counter() - started))
            if done != options.rows:
                raise SystemExit(f"{name} took {done} of {options.rows} rows")
    store.tables.metadata.drop_all(store.engine)
    store.dispose()
    base = statistics.median(rates["bare select+delete"])
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:20} {rate:9.0f} rows/s  {rate / base:5.2f} of the bare loop")  # noqa: T201


if __name__ == "__main__":
    main()
