"""Starts shop, relay and accounting, kills one of each on the way, and compares at the end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from examples.cdnow.data import read_rows
from examples.cdnow.processes import Process, ProcessFailedError
from examples.cdnow.proof import Proof, prove
from examples.cdnow.service import Base, Entry, Purchase, mq, purchases
from reliable_mq import ReliableMQError

APPLICATION = "examples.cdnow.service:mq"
LOOK = 0.2
"""Seconds between two looks at how far it is."""


def direct(rows: int | None, timeout: float, folder: Path) -> int:
    """Run the example; 0 if the ledger agrees with the file, 1 with the reason otherwise."""
    started = time.monotonic()
    try:
        with mq:
            prepare()
            play(rows, started + timeout, folder)
            # The processes have ended. What they had not acknowledged yet is delivered again,
            # to this one: nothing of it may change the ledger.
            mq.run_until_idle(timeout=60)
            proof = prove(mq.store.engine, rows)
            proof.errors += leftovers()
    except (ReliableMQError, ProcessFailedError, TimeoutError, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    report(proof, time.monotonic() - started)
    return 1 if proof.errors else 0


def prepare() -> None:
    """Create tables, topic and group; refuse what an earlier run has left half done."""
    Base.metadata.create_all(mq.store.engine)
    mq.declare()
    left = leftovers()
    if count(Purchase) or count(Entry) or left:
        raise ProcessFailedError(
            "an earlier run used this database or topic: give an empty --database-url and "
            f"another --topic ({'; '.join(left) or 'the tables cdnow_* have rows'})"
        )


def play(rows: int | None, deadline: float, folder: Path) -> None:
    """Let the processes work until everything is booked."""
    limit = [] if rows is None else ["--rows", str(rows)]
    shop = Process("shop", "examples.cdnow.shop", *limit, folder=folder)
    relay = Process("relay", "reliable_mq", "relay", APPLICATION, folder=folder)
    books = [
        Process(name, "reliable_mq", "consume", APPLICATION, folder=folder)
        for name in ("accounting-1", "accounting-2")
    ]
    total = sum(1 for _ in read_rows(rows))
    # Each has work before it and behind it when it is killed, however fast the others are.
    blows = [
        Blow(books[0], "booked", total // 4, lambda: count(Entry)),
        Blow(shop, "sold", total // 3, lambda: count(Purchase)),
        Blow(relay, "sold", total // 2, lambda: count(Purchase)),
    ]
    cast = [shop, relay, *books]
    try:
        watch(cast, blows, total, deadline)
        shop.finish()
        for process in (relay, *books):
            process.stop()
    except Exception:
        for process in cast:
            print(process.last_words(), file=sys.stderr)
        raise
    finally:
        for process in cast:
            process.kill()


@dataclass
class Blow:
    """Kill *process* once so many are sold or booked."""

    process: Process
    verb: str
    at: int
    count: Callable[[], int]

    def is_due(self) -> bool:
        """Tell whether the time has come."""
        return self.count() >= self.at

    def strike(self) -> None:
        """Kill it; it is seen dead, and started again, by :func:`watch`."""
        print(f"{self.count():6d} {self.verb}: {self.process.name} is killed (SIGKILL)", flush=True)
        self.process.kill()


def watch(cast: list[Process], blows: list[Blow], total: int, deadline: float) -> None:
    """Look on until everything is booked; kill, revive and report on the way."""
    shown = 0
    while (booked := count(Entry)) < total or blows:
        for blow in [blow for blow in blows if blow.is_due()]:
            blow.strike()
            blows.remove(blow)
        for process in cast:
            if process.revive():
                print(f"       {process.name} is started again", flush=True)
        if booked - shown >= total // 10:
            shown = booked
            print(f"{booked:6d} of {total} booked", flush=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {booked} of {total} are booked, and the time is over")
        time.sleep(LOOK)


def count(table: type[Base]) -> int:
    """Return the number of committed rows."""
    with mq.store.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def leftovers() -> list[str]:
    """Return what is not at rest: unsent, not acknowledged, waiting for a retry, dead."""
    status = mq.status()
    found = [
        f"{group} on {topic}: {state}"
        for (topic, group), state in status.groups.items()
        if topic == purchases.name and (state.lag or state.retries or state.dead_letters)
    ]
    if status.outbox.pending or status.outbox.held:
        found.append(f"the outbox is not empty: {status.outbox}")
    return found


def report(proof: Proof, seconds: float) -> None:
    """Say what was found."""
    for error in proof.errors[:10]:
        print("WRONG:", error)
    dollars = f"{proof.cents // 100:,}.{proof.cents % 100:02d}"
    verdict = "the ledger DISAGREES" if proof.errors else "count, sum and order agree"
    print(
        f"{proof.purchases} purchases of {proof.customers} customers, {dollars} dollars: {verdict}"
    )
    broker = mq.settings.broker_url.partition("://")[0]
    print(f"broker {broker}, database {mq.store.engine.dialect.name}, {seconds:.1f} s")
