"""SQLite's one writer at a time: everybody gets a turn, in this process and in others."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.util import greenlet_spawn

from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble, fairness
from reliable_mq.store.dialects.fairness import PAUSE, STRETCH, FairLock, hold
from reliable_mq.store.dialects.sqlite import SQLite
from tests.store.shop import Base, Order, orders


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    found = Store(database_url=sqlite_url)
    found.create()
    Base.metadata.create_all(found.engine)
    yield found
    found.dispose()


# --- the queue ------------------------------------------------------------------------------------


def test_turns_are_given_in_the_order_in_which_they_were_asked_for():
    lock = FairLock()
    turns = [lock.ask() for _ in range(4)]
    for number in range(4):
        assert [turn.is_set() for turn in turns] == [other <= number for other in range(4)]
        lock.release()
    assert lock.ask().is_set()


def test_one_who_gives_up_is_passed_over():
    lock = FairLock()
    first, second, third = lock.ask(), lock.ask(), lock.ask()
    lock.give_up(second)
    lock.give_up(first)
    assert not second.is_set()
    assert third.is_set()


def test_a_pause_is_due_after_a_stretch_of_back_to_back_turns_and_only_then(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("reliable_mq.store.dialects.fairness.time.monotonic", lambda: clock[0])
    lock = FairLock()

    def turn(seconds: float) -> float:
        lock.ask()
        left = lock.pause_left()
        clock[0] += left + seconds
        lock.release()
        return left

    step = STRETCH * 0.3
    assert [turn(step) for _ in range(5)] == pytest.approx([0, 0, 0, 0, PAUSE])
    assert [turn(step) for _ in range(5)] == pytest.approx([0, 0, 0, PAUSE, 0])
    clock[0] += 2 * PAUSE
    assert [turn(step) for _ in range(4)] == [0, 0, 0, 0]


def test_stores_and_engines_on_one_file_share_a_queue(store, sqlite_url):
    dialect = store.dialect
    assert isinstance(dialect, SQLite)
    other = Store(database_url=sqlite_url)
    assert isinstance(other.dialect, SQLite)
    lock = dialect.lock_of(store.engine)
    assert other.dialect.lock_of(other.engine) is lock
    assert dialect.lock_of(store.async_engine.sync_engine) is lock
    elsewhere = Store(database_url=f"{sqlite_url}.other")
    assert dialect.lock_of(elsewhere.engine) is not lock


@pytest.mark.parametrize("awaiting", [False, True])
def test_a_turn_that_does_not_come_is_a_locked_database(monkeypatch, awaiting):
    monkeypatch.setattr(fairness, "_LONGEST_WAIT", 0.05)
    lock = FairLock()
    lock.ask()

    def wait() -> None:
        with hold(lock, awaiting=awaiting):
            raise AssertionError("the lock was not ours")

    with pytest.raises(OperationalError) as caught:
        asyncio.run(greenlet_spawn(wait)) if awaiting else wait()
    assert SQLite().classify(caught.value) is Trouble.BUSY
    lock.release()
    assert lock.ask().is_set()


def test_who_waits_for_another_process_asks_every_millisecond(store, monkeypatch):
    # Left to itself, SQLite asks after 1, 2, 5, 10, 15, 20, 25, ... up to 100 milliseconds.
    asked: list[float] = []

    def pause(seconds: float, *, awaiting: bool) -> None:
        asked.append(seconds)
        if len(asked) == 30:
            other.rollback()

    monkeypatch.setattr(fairness, "pause", pause)
    engine = create_engine(store.engine.url)
    with engine.connect() as other, store.engine.connect() as connection:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        store.dialect.begin(connection)
    assert asked == [fairness.POLL] * 30
    engine.dispose()


# --- other processes --------------------------------------------------------------------------

_HOG = """
import sys, threading, time
from sqlalchemy import text
from reliable_mq.store import Store

store = Store(database_url=sys.argv[1])
with store.transaction() as connection:
    connection.execute(text("CREATE TABLE turns (number INTEGER)"))
    connection.execute(text("INSERT INTO turns VALUES (0)"))
print("on", flush=True)

def write():
    while True:
        with store.transaction() as connection:
            connection.execute(text("UPDATE turns SET number = number + 1"))
            time.sleep(0.003)

for _ in range(2):
    threading.Thread(target=write, daemon=True).start()
sys.stdin.readline()
"""


@pytest.fixture
def shared(sqlite_url: str) -> Iterator[Store]:
    """A store that waits for another process longer than the machine lets that one stand still."""
    found = Store(database_url=f"{sqlite_url}?timeout=60")
    found.create()
    Base.metadata.create_all(found.engine)
    yield found
    found.dispose()


@pytest.fixture
def hog(shared: Store) -> Iterator[None]:
    """Another process that writes back to back."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _HOG, str(shared.engine.url)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        yield
        process.communicate("end\n", timeout=60)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Our attempts to get a turn that were in vain. While we stand still ourselves there are none,
    however many turns the other one takes."""
    asked: list[float] = []
    pause = fairness.pause

    def noted(seconds: float, *, awaiting: bool) -> None:
        if seconds == fairness.POLL:
            asked.append(seconds)
        pause(seconds, awaiting=awaiting)

    monkeypatch.setattr(fairness, "pause", noted)
    return asked


# At one attempt a millisecond, a few of the other's stretches. None in vain would mean that nobody
# but SQLite itself has waited, which misses nearly every gap.
_MOST = 300
_MEAN = 90


def test_a_process_that_writes_back_to_back_does_not_starve_another(shared, hog, asked):
    most = 0
    for number in range(40):
        before = len(asked)
        with shared.transaction() as connection:
            connection.execute(insert(Order).values(number=number, customer="ann"))
        most = max(most, len(asked) - before)
    assert orders(shared) == 40
    assert 0 < most < _MOST
    assert len(asked) / 40 < _MEAN


def test_nor_one_that_waits_on_an_event_loop(shared, hog, asked):
    def write(number: int) -> int:
        before = len(asked)
        engine = shared.async_engine.sync_engine
        with shared.dialect.writing(engine), engine.connect() as connection:
            shared.dialect.begin(connection)
            connection.execute(insert(Order).values(number=number, customer="ann"))
            connection.commit()
            return len(asked) - before

    async def main() -> list[int]:
        vain = [await greenlet_spawn(write, number) for number in range(20)]
        await shared.adispose()
        return vain

    assert 0 < max(asyncio.run(main())) < _MOST


def test_the_busy_time_out_of_a_connection_is_left_as_it_was(store):
    with store.engine.connect() as connection:
        store.dialect.begin(connection)
        assert connection.execute(text("PRAGMA busy_timeout")).scalar_one() == 5000
        connection.rollback()
