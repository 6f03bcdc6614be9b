"""Hints between processes that a topic has new entries; an adapter stands for each process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
from sqlalchemy import text

from reliable_mq.adapter import SENT, Unroutable
from reliable_mq.errors import TransportError
from reliable_mq.store import Store
from reliable_mq.wakeup import Listener, channel_of, digest
from reliable_mq_sql import SqlAdapter
from reliable_mq_sql.hints import LogHints
from reliable_mq_sql.subscription import Poll, SqlSubscription
from tests.adapters.sql.conftest import Open, declare, order, publish
from tests.relay.support import NEVER, eventually

DEADLINE = 60.0

_LISTEN = "query LIKE 'LISTEN %' AND datname = current_database()"


@pytest.fixture
def stores(postgresql_url: str) -> Iterator[tuple[Store, Store]]:
    """The store as two processes have it."""
    here, elsewhere = Store(database_url=postgresql_url), Store(database_url=postgresql_url)
    here.create()
    yield here, elsewhere
    here.dispose()
    elsewhere.dispose()


class Asleep:
    """Subscriptions that look only when they are woken; tells when one begins to wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._waits = threading.Semaphore(0)

        def begin_to_wait(poll: Poll) -> float:
            self._waits.release()
            return NEVER

        monkeypatch.setattr(Poll, "next", begin_to_wait)

    def wait(self) -> None:
        assert self._waits.acquire(timeout=DEADLINE), "it does not wait for anything"


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Asleep:
    return Asleep(monkeypatch)


class Receiver:
    """Receives on a thread of its own until its adapter is closed."""

    def __init__(self, subscription: SqlSubscription) -> None:
        self._subscription = subscription
        self._bodies: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                batch = self._subscription.receive(10, NEVER)
                for one in batch.deliveries:
                    self._bodies.put(one.raw.body)
        except TransportError:
            return

    def take(self) -> bytes:
        return self._bodies.get(timeout=DEADLINE)


def receiver(adapter: SqlAdapter) -> Receiver:
    return Receiver(adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True))


def listening(store: Store) -> list[int]:
    """Return the server processes that listen, in this database."""
    with store.engine.connect() as connection:
        query = f"SELECT pid FROM pg_stat_activity WHERE {_LISTEN}"
        return list(connection.execute(text(query)).scalars())


def threads() -> list[str]:
    """Return the names of the threads for hints."""
    names = ("reliable-mq-listen", "reliable-mq-notify")
    return sorted(one.name for one in threading.enumerate() if one.name in names)


@pytest.fixture
def heard(stores: tuple[Store, Store]) -> Iterator[SimpleQueue[str]]:
    """All hints about entries, as they come."""
    found: SimpleQueue[str] = SimpleQueue()
    listener = Listener(stores[0], channel_of(stores[0].tables.topic_log), found.put)
    listener.start()
    assert found.get(timeout=DEADLINE) == "", "it begins to listen"
    yield found
    listener.close()


# --- waking ---------------------------------------------------------------------------------------


def test_a_publish_in_another_process_wakes_a_subscription(
    stores: tuple[Store, Store], opened: Open, asleep: Asleep
):
    here, elsewhere = (opened(store, lease=3 * NEVER) for store in stores)
    declare(here, "billing")
    received = receiver(here)
    for n in range(5):
        asleep.wait()
        publish(elsewhere, n)
        assert received.take() == str(n).encode()


def test_what_was_published_before_it_listened_is_seen_when_it_does(
    stores: tuple[Store, Store], opened: Open, asleep: Asleep, monkeypatch: pytest.MonkeyPatch
):
    may_listen = threading.Event()
    listen = Listener._listen

    def listen_later(listener: Listener) -> None:
        may_listen.wait(DEADLINE)
        listen(listener)

    monkeypatch.setattr(Listener, "_listen", listen_later)
    here, elsewhere = (opened(store, lease=3 * NEVER) for store in stores)
    declare(here, "billing")
    received = receiver(here)
    asleep.wait()
    publish(elsewhere, 1)
    may_listen.set()
    assert received.take() == b"1"


def test_a_hint_wakes_the_subscriptions_of_its_topic_alone(stores: tuple[Store, Store]):
    told: SimpleQueue[Callable[[str], bool]] = SimpleQueue()
    here = LogHints(stores[0], "here", wake=told.put)
    elsewhere = LogHints(stores[1], "elsewhere", wake=told.put)
    here.listen()
    assert told.get(timeout=DEADLINE)("anything")
    elsewhere.send(["orders", "it's"])
    has_news = [told.get(timeout=DEADLINE) for _ in range(2)]
    assert {one for one in ("orders", "it's", "bills") for has in has_news if has(one)} == {
        "orders",
        "it's",
    }
    assert not any(has("orders") and has("it's") for has in has_news)
    here.close()
    elsewhere.close()


def test_what_a_process_published_itself_does_not_wake_it_twice(
    stores: tuple[Store, Store], heard: SimpleQueue[str]
):
    told: SimpleQueue[Callable[[str], bool]] = SimpleQueue()
    here = LogHints(stores[0], "here", wake=told.put)
    elsewhere = LogHints(stores[1], "elsewhere", wake=told.put)
    here.listen()
    told.get(timeout=DEADLINE)
    here.send(["orders"])
    assert heard.get(timeout=DEADLINE).endswith(digest("orders"))
    elsewhere.send(["bills"])
    # Hints arrive in one order everywhere: the one before was for others.
    assert told.get(timeout=DEADLINE)("bills")
    here.close()
    elsewhere.close()


def test_a_publish_that_stored_nothing_hints_at_nothing(
    stores: tuple[Store, Store], opened: Open, heard: SimpleQueue[str]
):
    adapter = opened(stores[1])
    assert isinstance(adapter.publish([order(1)], 20)[0], Unroutable)
    declare(adapter)
    publish(adapter, 2)
    heard.get(timeout=DEADLINE)
    adapter.close()
    assert heard.empty()


# --- without hints --------------------------------------------------------------------------------


def kill_listeners(store: Store, count: int) -> None:
    eventually(lambda: len(listening(store)) == count, "nobody listens", timeout=DEADLINE)
    with store.engine.connect() as connection:
        query = f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE {_LISTEN}"
        assert all(connection.execute(text(query)).scalars().all())


def test_a_listener_whose_connection_was_killed_comes_back_without_a_warning(
    stores: tuple[Store, Store],
    opened: Open,
    asleep: Asleep,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("reliable_mq.wakeup._RECONNECT", 0.01)
    here, elsewhere = (opened(store, lease=3 * NEVER) for store in stores)
    declare(here, "billing")
    received = receiver(here)
    for n in range(3):
        asleep.wait()
        kill_listeners(stores[1], 1)
        publish(elsewhere, n)
        assert received.take() == str(n).encode()
    assert not [one for one in caplog.records if one.levelname in ("WARNING", "ERROR")]


def test_while_nobody_listens_messages_are_found_by_looking(
    stores: tuple[Store, Store], opened: Open, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("reliable_mq.wakeup._RECONNECT", NEVER)
    here, elsewhere = (opened(store) for store in stores)
    declare(here, "billing")
    received = receiver(here)
    kill_listeners(stores[1], 1)
    for n in range(3):
        publish(elsewhere, n)
        assert received.take() == str(n).encode()
    assert not listening(stores[1])


def test_a_publish_succeeds_where_no_thread_for_its_hint_can_be_had(
    stores: tuple[Store, Store], opened: Open, monkeypatch: pytest.MonkeyPatch
):
    start = threading.Thread.start
    refused = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name in ("reliable-mq-notify", "reliable-mq-listen"):
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    adapter = opened(stores[0])
    declare(adapter, "billing")
    assert adapter.publish([order(1)], 20) == [SENT]
    assert receiver(adapter).take() == b"1"
    assert set(refused) == {"reliable-mq-notify", "reliable-mq-listen"}


# --- threads --------------------------------------------------------------------------------------


def test_who_only_publishes_does_not_listen_and_who_receives_listens_once(
    stores: tuple[Store, Store], opened: Open
):
    here, elsewhere = (opened(store) for store in stores)
    assert threads() == []
    declare(elsewhere, "billing", "audit")
    publish(elsewhere, 1)
    assert threads() == ["reliable-mq-notify"]
    for group in ("billing", "audit"):
        subscription = here.subscribe(["orders"], group, prefetch=10, ordered=True)
        subscription.receive(10, 0)
    assert threads() == ["reliable-mq-listen", "reliable-mq-notify"]


def test_closing_ends_threads_and_connections(stores: tuple[Store, Store], opened: Open):
    adapter = opened(stores[0])
    declare(adapter, "billing")
    publish(adapter, 1)
    assert receiver(adapter).take() == b"1"
    eventually(lambda: listening(stores[1]), "nobody listens", timeout=DEADLINE)
    for _ in range(2):
        adapter.close()
        assert threads() == []
    eventually(lambda: not listening(stores[1]), "a connection is left", timeout=DEADLINE)


def test_a_subscription_of_a_closed_adapter_starts_no_thread(
    stores: tuple[Store, Store], opened: Open
):
    adapter = opened(stores[0])
    declare(adapter, "billing")
    adapter.close()
    late = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    late.receive(10, 0)
    assert threads() == []
    late.close()


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_elsewhere_than_on_postgresql_no_thread_is_started(
    kind: str, opened: Open, request: pytest.FixtureRequest
):
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"))
    store.create()
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, 1)
    assert receiver(adapter).take() == b"1"
    assert threads() == []
    adapter.close()
    store.dispose()


_FORK = """
import os, sys, threading
from reliable_mq.adapter import SENT, AdapterContext
from reliable_mq.store import Store
from reliable_mq_sql import open_adapter
from reliable_mq_sql.subscription import Poll
from tests.adapters.sql.conftest import declare, publish
from tests.adapters.sql.test_waking import receiver
from tests.relay.support import NEVER

waits = threading.Semaphore(0)
Poll.next = lambda poll: waits.release() or NEVER

def opened(name):
    store = Store(database_url=sys.argv[1])
    store.create()
    return open_adapter("sql://", AdapterContext(instance=name, store=store, lease=3 * NEVER))

receiving, sending = opened("receiving"), opened("sending")
declare(receiving, "billing")
received = receiver(receiving)
assert waits.acquire(timeout=60)
publish(sending, 0)
assert received.take() == b"0"
assert waits.acquire(timeout=60)
child = os.fork()
if child == 0:
    publish(sending, 1)
    receiving._hints.listen()
    names = sorted(one.name for one in threading.enumerate() if "reliable" in one.name)
    sending.close()
    receiving._hints.close()
    os._exit(0 if names == ["reliable-mq-listen", "reliable-mq-notify"] else 1)
assert received.take() == b"1", "the child's publish woke nobody"
assert os.waitpid(child, 0)[1] == 0, "the child has not its own threads"
assert waits.acquire(timeout=60)
publish(sending, 2)
assert received.take() == b"2", "the parent's publish wakes nobody any more"
receiving.close()
sending.close()
"""


def test_a_forked_process_sends_and_hears_on_connections_of_its_own(postgresql_url: str):
    done = subprocess.run(
        [sys.executable, "-c", _FORK, postgresql_url],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
