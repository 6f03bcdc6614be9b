"""Twelve writers, three relays that are killed and stopped at random, and a moody broker.

In the end every committed message is on the broker, nothing else is, and the first copies of
each key are in the order of the commits.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from reliable_mq.store import Store
from reliable_mq.store.outbox.held import OutboxDesk
from tests.relay.relay_process import LEASE, FileBroker
from tests.relay.support import (
    ADAPTER,
    eventually,
    held,
    make_relay,
    message,
    put,
    running,
    waiting,
)

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

WRITERS = 12
KEYS = [f"key{n}" for n in range(24)]
SECONDS = 8.0
"""It goes on for so long, and where the machine is slow until enough happened."""
DEADLINE = 150.0
COMMITTED = 100
BACKLOG = 500
"""More than so many messages are not left to the last relay, however slow the others are."""
ROOT = Path(__file__).parents[2]


class Writers:
    """Transactions that count up their key's number and publish it; some roll back, some linger.

    The lock on the number's row makes the transactions of one key follow each other, so that the
    numbers are the order of commits. Those of other keys overlap with them at will.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.committed: list[str] = []
        self.rolled_back: list[str] = []
        self._go_on = threading.Event()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(random.Random(n),)) for n in range(WRITERS)
        ]
        with store.transaction() as connection:
            connection.execute(text("CREATE TABLE counters (name VARCHAR(20) PRIMARY KEY, n INT)"))
            for key in KEYS:
                connection.execute(text("INSERT INTO counters VALUES (:key, 0)"), {"key": key})

    def start(self) -> None:
        self._go_on.set()
        for thread in self._threads:
            thread.start()

    def pace(self) -> None:
        """Let the relays catch up where they are behind."""
        if len(waiting(self.store)) > BACKLOG:
            self._go_on.clear()
        else:
            self._go_on.set()

    def end(self) -> None:
        self._stop.set()
        self._go_on.set()
        for thread in self._threads:
            thread.join()

    def _write(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            self._go_on.wait()
            with suppress(_GaveUp):
                self._transaction(chance)
            time.sleep(chance.uniform(0, 0.02))

    def _transaction(self, chance: random.Random) -> None:
        key = chance.choice(KEYS)
        with self.store.transaction() as connection:
            name = f"{key}:{_count_up(connection, key)}:{uuid.uuid4().hex}"
            put(self.store, connection, message(name, key))
            lingers = chance.random() < 0.1 and self.store.dialect.name != "sqlite"
            time.sleep(chance.uniform(0.05, 0.3) if lingers else 0)
            if chance.random() < 0.1:
                self.rolled_back.append(name)
                raise _GaveUp
        self.committed.append(name)


class _GaveUp(Exception):
    pass


def _count_up(connection: Connection, key: str) -> int:
    connection.execute(text("UPDATE counters SET n = n + 1 WHERE name = :key"), {"key": key})
    found = connection.execute(text("SELECT n FROM counters WHERE name = :key"), {"key": key})
    return int(found.scalar_one())


class Relays:
    """Relay processes. What happens to them is decided by *chance*."""

    def __init__(self, url: str, log: Path, chance: random.Random) -> None:
        self._arguments = [sys.executable, "-m", "tests.relay.relay_process", url, str(log)]
        self._chance = chance
        self._started = 0
        self.kills = self.stops = 0
        self.processes = [self._start() for _ in range(3)]
        for process in self.processes:
            _wait_until_it_runs(process)

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        places = [str(ROOT), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [*self._arguments, str(self._started)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            stdout=subprocess.PIPE,
        )

    def harm_one(self) -> None:
        victim = self._chance.randrange(len(self.processes))
        process = self.processes[victim]
        if self._chance.random() < 0.35:
            self.stops += 1
            process.send_signal(signal.SIGSTOP)
            timer = threading.Timer(2 * LEASE, process.send_signal, [signal.SIGCONT])
            timer.daemon = True
            timer.start()
        else:
            self.kills += 1
            _kill(process)
            self.processes[victim] = self._start()

    def end(self) -> None:
        for process in self.processes:
            _kill(process)


def _wait_until_it_runs(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _enough(relays: Relays, retried: int, writers: Writers, log: Path) -> bool:
    names = log.read_text().split()
    return (
        relays.kills >= 3
        and relays.stops >= 1
        and retried >= 1
        and len(writers.rolled_back) >= 1
        and len(writers.committed) >= COMMITTED
        and len(names) > len(set(names))
    )


def _over(passed: float, relays: Relays, retried: int, writers: Writers, log: Path) -> bool:
    return passed > DEADLINE or (passed > SECONDS and _enough(relays, retried, writers, log))


def retry_all(desk: OutboxDesk) -> int:
    return sum(desk.retry(entry.id) for entry in desk.entries(held=True))


def first_copies(log: Path) -> dict[str, list[str]]:
    """The ids by key, each where it came first."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(log.read_text().split()):
        found[name.split(":")[0]].append(name)
    return found


def test_nothing_is_lost_or_invented_or_out_of_order(store_url, tmp_path):
    store = Store(database_url=store_url, adapter=ADAPTER)
    store.create()
    desk = OutboxDesk(store, discard_after=0.0)
    log = tmp_path / "broker.log"
    log.touch()
    writers = Writers(store)
    chance = random.Random(store.dialect.name)
    relays = Relays(store_url, log, chance)
    writers.start()
    retried = 0
    try:
        began = time.monotonic()
        while not _over(time.monotonic() - began, relays, retried, writers, log):
            time.sleep(chance.uniform(0.2, 0.8))
            writers.pace()
            relays.harm_one()
            retried += retry_all(desk)
    finally:
        writers.end()
        relays.end()

    survivor = make_relay(
        store,
        FileBroker(log, 0, moody=False),
        instance="survivor",
        lease=LEASE,
        publish_timeout=1.0,
    )
    with running(survivor):
        eventually(lambda: retry_all(desk) == 0 and not waiting(store), "not everything was sent")
    assert held(store) == []

    published = first_copies(log)
    assert {name for names in published.values() for name in names} == set(writers.committed)
    for key, names in published.items():
        numbers = [int(name.split(":")[1]) for name in names]
        assert numbers == list(range(1, len(numbers) + 1)), key

    assert _enough(relays, retried, writers, log), "it would not mean much: too little happened"
    store.dispose()
