"""A broker that does as it is told, and the outbox as a test fills and sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, event, insert, select, text
from sqlalchemy.exc import OperationalError

from reliable_mq.adapter import SENT, Outcome, Refused, Sent, Unknown, Unroutable
from reliable_mq.clock import Clock, SystemClock
from reliable_mq.events import Event, Events
from reliable_mq.message import Message
from reliable_mq.relay import Relay, RelayCounts
from reliable_mq.settings import RelaySettings, Settings
from reliable_mq.store import Store
from reliable_mq.store.codec import pack_headers
from reliable_mq.store.outbox.outgoing import Outgoing
from reliable_mq.store.outbox.reading import Excluded, Reader
from reliable_mq.store.tables import OUTBOX_SLOTS, slot_of
from reliable_mq.store.times import to_micros

ADAPTER = "scripted"
ALL_SLOTS = range(OUTBOX_SLOTS)
DEADLINE = 60.0
NEVER = 600.0
"""Seconds that no test waits: what happens sooner happened for another reason."""

UNKNOWN = Unknown("no answer in time")
UNROUTABLE = Unroutable("nobody is bound to it")
REFUSED = Refused("too large")


class ScriptedBroker:
    """Confirms everything but what it was told to answer otherwise. Keeps the prefix rule.

    ``log`` are the ids it stored, in order; ``calls`` the ids of each ``publish``.
    """

    name = ADAPTER

    def __init__(self) -> None:
        self.log: list[str] = []
        self.calls: list[list[str]] = []
        self.sizes: list[int] = []
        self.answers: dict[str, list[Outcome | Exception]] = {}
        self.topics: dict[str, Outcome] = {}
        self.everything: Outcome | Exception | None = None
        self.stores_unknown = False
        self.gate: Callable[[Sequence[Message]], None] | None = None
        self.changed = threading.Condition()

    def answer(self, message_id: str, *answers: Outcome | Exception) -> None:
        """Give these answers to the next tries of one message, then confirm it."""
        self.answers[message_id] = list(answers)

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        if self.gate is not None:
            self.gate(messages)
        with self.changed:
            self.calls.append([message.id for message in messages])
            self.sizes.append(sum(len(message.body) for message in messages))
            self.changed.notify_all()
            for message in messages:
                self._raise_for(message)
            stopped: set[tuple[str, str | None]] = set()
            return [self._publish_one(message, stopped) for message in messages]

    def _raise_for(self, message: Message) -> None:
        if isinstance(self.everything, Exception):
            raise self.everything
        scripted = self.answers.get(message.id)
        if scripted and isinstance(scripted[0], Exception):
            raise scripted[0]

    def _publish_one(self, message: Message, stopped: set[tuple[str, str | None]]) -> Outcome:
        key = (message.topic, message.key)
        if message.key is not None and key in stopped:
            return Unknown("an earlier message of its key was not stored")
        outcome = self._decide(message)
        if isinstance(outcome, Sent) or (isinstance(outcome, Unknown) and self.stores_unknown):
            self.log.append(message.id)
            self.changed.notify_all()
        if not isinstance(outcome, Sent):
            stopped.add(key)
        return outcome

    def _decide(self, message: Message) -> Outcome:
        if isinstance(self.everything, Outcome):
            return self.everything
        scripted = self.answers.get(message.id)
        if scripted:
            answer = scripted.pop(0)
            assert not isinstance(answer, Exception)
            return answer
        return self.topics.get(message.topic, SENT)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until *condition* holds, looked at whenever something was published."""
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE), what


def message(
    name: str,
    key: str | None = "k",
    *,
    topic: str = "orders",
    body: bytes = b"{}",
    headers: dict[str, str | bytes] | None = None,
) -> Message:
    return Message(id=name, topic=topic, key=key, body=body, headers=headers or {})


def put(store: Store, connection: Connection, *messages: Message) -> None:
    """Insert now, in the caller's transaction: the numbers are drawn here."""
    rows: list[dict[str, Any]] = [
        {
            "slot": slot_of(one.key, one.id, OUTBOX_SLOTS),
            "message_id": one.id,
            "topic": one.topic,
            "message_key": None if one.key is None else one.key.encode(),
            "body": one.body,
            "headers": pack_headers(one.headers),
            "content_type": one.content_type,
            "message_time": to_micros(one.time),
        }
        for one in messages
    ]
    connection.execute(insert(store.tables.outbox).values(created_at=store.now()), rows)


def commit(store: Store, *messages: Message) -> None:
    """Put *messages* into the outbox in one transaction of their own."""
    with store.transaction() as connection:
        put(store, connection, *messages)


def waiting(store: Store) -> list[str]:
    """The ids of the messages in the outbox, by their numbers."""
    return _ids(store, store.tables.outbox)


def held(store: Store) -> list[str]:
    """The ids of the held messages, by their numbers."""
    return _ids(store, store.tables.outbox_held)


def _ids(store: Store, table: Any) -> list[str]:
    with store.engine.connect() as connection:
        return list(connection.execute(select(table.c.message_id).order_by(table.c.id)).scalars())


def row_of(store: Store, name: str, *, is_held: bool = False) -> Any:
    """The row of one message."""
    table = store.tables.outbox_held if is_held else store.tables.outbox
    with store.engine.connect() as connection:
        return connection.execute(select(table).where(table.c.message_id == name)).one()


def read(store: Store, excluded: Excluded | None = None, *, rows: int = 2000) -> list[Outgoing]:
    return Reader(store, rows=rows).read(ALL_SLOTS, excluded or Excluded())


class Recorder:
    """All events, in order."""

    def __init__(self, events: Events) -> None:
        self.seen: list[Event] = []
        events.subscribe(Event, self.seen.append)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


def make_relay(
    store: Store,
    broker: Any,
    *,
    instance: str = "one",
    events: Events | None = None,
    clock: Clock | None = None,
    batch_size: int = 500,
    lease: float = 30.0,
    publish_timeout: float = 20.0,
    poll_interval: float = 0.05,
) -> Relay:
    relay = RelaySettings(
        batch_size=batch_size,
        lease=lease,
        publish_timeout=publish_timeout,
        poll_interval=poll_interval,
    )
    return Relay(
        store,
        broker,
        settings=Settings(relay=relay),
        events=events or Events(),
        clock=clock or SystemClock(),
        instance=instance,
    )


def make_sleepy_relay(store: Store, broker: Any, **options: Any) -> Relay:
    """One that looks only when it is woken, or when it has a reason of its own."""
    return make_relay(store, broker, poll_interval=NEVER, lease=3 * NEVER, **options)


def drain(*relays: Relay) -> int:
    """Step until nothing moves; return how many messages were sent."""
    sent = 0
    while True:
        counts = [relay.step() for relay in relays]
        sent += sum(one.sent for one in counts)
        if not any(one.moved for one in counts):
            return sent


def one_round(relay: Relay) -> RelayCounts:
    """What the running relay does again and again; unlike a step it minds every pause."""
    return relay._round(threading.Event())


class Running:
    """A relay on a thread of its own."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.stop = threading.Event()
        self._thread = threading.Thread(target=relay.run, args=(self.stop,), daemon=True)

    def start(self) -> Running:
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self.stop.set()
        self.relay.wake()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the relay did not stop"


@contextmanager
def running(*relays: Relay) -> Iterator[list[Running]]:
    started = [Running(relay).start() for relay in relays]
    try:
        yield started
    finally:
        for one in started:
            one.end()


def eventually(condition: Callable[[], object], what: str, *, timeout: float = DEADLINE) -> None:
    """Look every few milliseconds until *condition* holds; fail with *what* at the deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def execute(store: Store, statement: str, **values: Any) -> None:
    with store.transaction() as connection:
        connection.execute(text(statement), values)


def before_execution(store: Store) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate what is called before each statement that goes through SQLAlchemy."""

    def listen(call: Callable[..., None]) -> Callable[..., None]:
        for engine in {store.engine, store.walking_engine}:
            event.listen(engine, "before_cursor_execute", call)
        return call

    return listen


def watch_statements(store: Store, see: Callable[[Any, str, Any], None]) -> None:
    """Call *see* with the driver's connection, the text and the parameters of each statement.

    Those that go past SQLAlchemy included, as PostgreSQL's reads of the outbox do.
    """
    if store.dialect.name != "postgresql":

        @before_execution(store)
        def executed(connection, cursor, statement, parameters, context, many):
            see(connection.connection.driver_connection, statement, parameters)

        return

    class Watched(psycopg.Cursor):
        def execute(self, query, params=None, **options):
            see(self.connection, query, params)
            return super().execute(query, params, **options)

    def watch(connection, record, proxy):
        connection.cursor_factory = Watched

    for engine in {store.engine, store.walking_engine}:
        event.listen(engine, "checkout", watch)


def deadlocks(store: Store, verb: str, times: int) -> list[int]:
    """Have the next *times* statements that begin with *verb* end as a deadlock; return the rest.

    An error as the driver raises it: on PostgreSQL and MariaDB by its code, on SQLite by its text.
    """
    codes: dict[str, tuple[str, object]] = {
        "postgresql": ("sqlstate", "40P01"),
        "mysql": ("args", (1213, "deadlock")),
    }
    error = Exception("database is locked")
    if store.dialect.name in codes:
        name, value = codes[store.dialect.name]
        setattr(error, name, value)
    left = [1] * times

    @before_execution(store)
    def fail(connection, cursor, statement, parameters, context, many):
        if left and statement.startswith(verb):
            left.pop()
            raise OperationalError(statement, {}, error)

    return left
