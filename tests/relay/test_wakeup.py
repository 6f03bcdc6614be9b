"""Hints between processes; a store of its own stands for each process here."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from reliable_mq.store import Store, outbox
from reliable_mq.wakeup import Listener, Notifier, _Line, channel_of, next_gap
from tests.relay.support import (
    ADAPTER,
    DEADLINE,
    commit,
    eventually,
    make_sleepy_relay,
    message,
    running,
)


@pytest.fixture
def elsewhere(postgresql_store, postgresql_url):
    """The store as another process has it, with a notifier."""
    store = Store(database_url=postgresql_url, adapter=ADAPTER)
    notifier = Notifier(store)
    notifier.start()
    yield store
    notifier.close()
    store.dispose()


class Hints:
    def __init__(self) -> None:
        self.count = 0
        self.changed = threading.Condition()

    def __call__(self, hint: str = "") -> None:
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, DEADLINE), self.count


def outbox_channel(store: Store) -> str:
    return channel_of(store.tables.outbox)


@pytest.fixture
def hints(postgresql_store):
    found = Hints()
    listener = Listener(postgresql_store, outbox_channel(postgresql_store), found)
    listener.start()
    found.wait(1)  # it hints once when it begins to listen: something may have come before
    yield found
    listener.close()


_HINT = "^SELECT set_config.*pg_notify"


def _hinting(store: Store) -> list[int]:
    """Return the server processes that hinted last of all."""
    with store.engine.connect() as connection:
        query = f"SELECT pid FROM pg_stat_activity WHERE query ~ '{_HINT}'"
        return list(connection.exec_driver_sql(query).scalars())


def append(store: Store, name: str) -> None:
    with store.transaction() as connection:
        outbox.append(store, connection, message(name))


def test_a_commit_in_another_process_wakes_the_relay(postgresql_store, elsewhere, broker):
    relay = make_sleepy_relay(postgresql_store, broker)
    with running(relay):
        append(elsewhere, "m0")
        broker.wait_for(lambda: broker.log == ["m0"], "the relay did not start")
        for n in range(1, 5):
            append(elsewhere, f"m{n}")
            broker.wait_for(lambda n=n: f"m{n}" in broker.log, "the commit woke nobody")


def test_the_last_of_many_commits_is_always_followed_by_a_hint(elsewhere, hints):
    """And many commits do not make as many hints."""
    for _ in range(300):
        elsewhere.after_append()
    hints.wait(2)
    before = hints.count
    assert before < 50
    elsewhere.after_append()
    hints.wait(before + 1)


def test_a_rolled_back_transaction_hints_at_nothing(elsewhere, hints):
    before = hints.count
    with pytest.raises(RuntimeError), elsewhere.transaction() as connection:  # noqa: PT012
        outbox.append(elsewhere, connection, message("never"))
        raise RuntimeError
    append(elsewhere, "m")
    hints.wait(before + 1)
    assert hints.count == before + 1


def test_the_hint_is_not_part_of_the_business_transaction(
    postgresql_store, elsewhere, hints, monkeypatch
):
    monkeypatch.setattr("reliable_mq.wakeup._KEPT", DEADLINE)
    with elsewhere.transaction() as connection:
        business = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        outbox.append(elsewhere, connection, message("m"))
    hints.wait(2)
    hinting = _hinting(postgresql_store)
    assert hinting
    assert business not in hinting


def test_the_listener_connects_again(postgresql_store, elsewhere, hints, monkeypatch):
    monkeypatch.setattr("reliable_mq.wakeup._RECONNECT", 0.01)
    before = hints.count
    with elsewhere.engine.connect() as connection:
        killed = connection.execute(
            text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN %' AND datname = current_database()"
            )
        )
        assert killed.scalar_one() == 1
    hints.wait(before + 1)
    append(elsewhere, "m")
    hints.wait(before + 2)


def test_a_database_that_is_down_fails_no_commit_and_ends_no_thread(elsewhere, hints, monkeypatch):
    before = hints.count

    refused = threading.Event()

    def refuse():
        refused.set()
        raise psycopg.OperationalError("connection refused")

    with monkeypatch.context() as broken:
        broken.setattr(elsewhere.engine, "raw_connection", refuse)
        elsewhere.after_append()
        assert refused.wait(DEADLINE)
    elsewhere.after_append()
    hints.wait(before + 1)


def test_hints_that_follow_each_other_share_a_connection_that_no_pool_holds(
    postgresql_store, elsewhere, hints, monkeypatch
):
    monkeypatch.setattr("reliable_mq.wakeup._KEPT", DEADLINE)
    elsewhere.after_append()
    hints.wait(2)
    used = _hinting(postgresql_store)
    assert len(used) == 1
    before = hints.count
    elsewhere.after_append()
    hints.wait(before + 1)
    assert _hinting(postgresql_store) == used
    assert elsewhere.engine.pool.checkedout() == 0


def test_a_connection_for_hints_is_closed_when_no_more_come(
    postgresql_store, elsewhere, hints, monkeypatch
):
    monkeypatch.setattr("reliable_mq.wakeup._KEPT", 0.01)
    elsewhere.after_append()
    hints.wait(2)
    eventually(lambda: not _hinting(postgresql_store), "it is still there")


def test_a_hint_is_sent_again_where_its_connection_had_died(
    postgresql_store, elsewhere, hints, monkeypatch, caplog
):
    monkeypatch.setattr("reliable_mq.wakeup._KEPT", DEADLINE)
    elsewhere.after_append()
    hints.wait(2)
    with postgresql_store.engine.connect() as connection:
        for pid in _hinting(postgresql_store):
            connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    before = hints.count
    elsewhere.after_append()
    hints.wait(before + 1)
    assert not [one for one in caplog.records if one.levelname in ("WARNING", "ERROR")]


def test_a_hint_does_not_wait_for_the_disk_and_nothing_else_on_its_session_does_not(
    elsewhere, hints
):
    before = hints.count
    line = _Line(elsewhere, outbox_channel(elsewhere))
    line.send([""])
    hints.wait(before + 1)
    assert line._connection is not None
    cursor = line._connection.cursor()

    def waits() -> Any:
        cursor.execute("SHOW synchronous_commit")
        (setting,) = cursor.fetchone() or (None,)
        return setting

    # As a pooler would hand the session on to somebody else.
    assert waits() == "on"
    cursor.execute("BEGIN")
    cursor.execute(line._statement([""]))
    assert waits() == "off"
    cursor.execute("COMMIT")
    assert waits() == "on"
    line.close()


def test_hints_become_fewer_while_commits_go_on_without_a_pause(elsewhere, hints):
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        elsewhere.after_append()
    # Twenty milliseconds apart, but for the first few; the last commit has its hint as well.
    assert 0 < hints.count < 100
    before = hints.count
    elsewhere.after_append()
    hints.wait(before + 1)


@pytest.mark.parametrize(
    ("a_second", "ends_at"), [(10, 0.001), (100, 0.001), (1000, 0.02), (10_000, 0.02)]
)
def test_only_a_stream_of_commits_waits_for_its_hints(a_second, ends_at):
    # As after a burst: it must not stay that way.
    gap = 0.02
    for _ in range(20):
        gap = next_gap(gap, int(a_second * gap))
    assert gap == ends_at


def test_the_last_commit_before_the_end_has_its_hint(postgresql_url, hints):
    store = Store(database_url=postgresql_url, adapter=ADAPTER)
    notifier = Notifier(store)
    for _ in range(20):
        notifier.start()
        before = hints.count
        store.after_append()
        notifier.close()
        hints.wait(before + 1)
    store.dispose()


_FORK = """
import os, signal
from reliable_mq.store import Store
from reliable_mq.wakeup import Hints, Listener

store = Store(database_url="postgresql://app@127.0.0.1:1/shop")
hints, listener = Hints(store, "channel"), Listener(store, "channel", print)
closed = Hints(store, "channel")
closed.stop()
with hints._guard, hints._due._cond, hints._closed._cond, listener._guard, listener._closed._cond:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        hints.send("00")
        listener.start()
        listener.close()
        hints.close()
        os._exit(0 if closed._closed.is_set() else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_forked_while_others_hold_the_locks_goes_on():
    done = subprocess.run(
        [sys.executable, "-P", "-c", _FORK],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_behind(postgresql_store, postgresql_url):
    query = f"SELECT count(*) FROM pg_stat_activity WHERE query ~ '^LISTEN |{_HINT}'"

    def left() -> int:
        # In a transaction of its own: what is seen of others stays as its first look saw it.
        with postgresql_store.engine.connect() as connection:
            return int(connection.exec_driver_sql(query).scalar_one())

    threads = set(threading.enumerate())
    notifier = Notifier(postgresql_store)
    listener = Listener(postgresql_store, outbox_channel(postgresql_store), lambda hint: None)
    notifier.start()
    notifier.start()
    listener.start()
    append(postgresql_store, "m")
    for _ in range(2):
        notifier.close()
        listener.close()
    assert not set(threading.enumerate()) - threads
    assert postgresql_store.on_appended == []
    eventually(lambda: left() == 0, "a connection is left")


def test_elsewhere_than_on_postgresql_nothing_is_started(sqlite_url):
    store = Store(database_url=sqlite_url, adapter=ADAPTER)
    store.create()
    threads = set(threading.enumerate())
    notifier = Notifier(store)
    listener = Listener(store, outbox_channel(store), lambda hint: None)
    notifier.start()
    listener.start()
    commit(store, message("m"))
    assert not set(threading.enumerate()) - threads
    assert store.on_appended == []
    notifier.close()
    listener.close()
    store.dispose()


def test_each_table_with_its_prefix_and_schema_has_a_channel_of_its_own():
    url = "postgresql+psycopg://app@localhost/app"
    stores = [
        Store(database_url=url),
        Store(database_url=url, table_prefix="other_"),
        Store(database_url=url, db_schema="other"),
    ]
    channels = {channel_of(store.tables.outbox) for store in stores}
    channels |= {channel_of(store.tables.topic_log) for store in stores}
    assert len(channels) == 6
    assert all(channel.isidentifier() and len(channel) < 63 for channel in channels)
