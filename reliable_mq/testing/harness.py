"""A whole application in a test: memory broker, fake clock, its own database, no server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from reliable_mq import events as ev
from reliable_mq import operations
from reliable_mq.app import ReliableMQ
from reliable_mq.durations import seconds
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import DeadLetter, HeaderValue, Message, Topic, new_message_id
from reliable_mq.runtime import Runtime
from reliable_mq.status import Counts
from reliable_mq.store.retries import Retries
from reliable_mq.testing.clock import FakeClock
from reliable_mq.testing.memory import MemoryBroker

TIMEOUT = 30.0
"""Real seconds after which a test that does not come to rest fails."""

_STEP = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one delivered message.

    ``result`` is ``handled``, ``duplicate``, ``retried`` (it waits for its next attempt),
    ``parked`` (it waits behind an earlier one of its key) or ``dead-lettered``; ``attempts`` are
    those made so far; ``cause`` is the last failure's.
    """

    result: str
    attempts: int = 0
    cause: str | None = None


class Harness:
    """Runs *mq* on a memory broker and a fake clock inside ``with`` or ``async with``.

    The tables are made in *engine*, or in a temporary SQLite file that goes away at the end; the
    application's own tables are the test's to make in :attr:`engine`. Outside the block *mq* is
    as it was. Handlers run only during :meth:`deliver` and :meth:`run`; nothing sleeps.
    """

    def __init__(self, mq: ReliableMQ, engine: Engine | AsyncEngine | None = None) -> None:
        self._mq = mq
        self._given = engine
        self._name = f"harness-{new_message_id()}"
        self._before: Runtime | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.clock = FakeClock()
        self.broker = MemoryBroker.named(self._name)

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._open()
        try:
            self._mq.declare()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._mq.close()
        self._restore()

    async def __aenter__(self) -> Self:
        self._open()
        try:
            await self._mq.adeclare()
        except BaseException:
            self._restore()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._mq.aclose()
        self._restore()

    def _open(self) -> None:
        if self._before is not None:
            raise ConfigurationError("this Harness is in use already")
        mq = self._mq
        settings = mq.settings.replace(broker_url=f"memory://{self._name}", client_options={})
        options: dict[str, Any] = {"clock": self.clock, "now": self.clock.expression}
        if isinstance(self._given, AsyncEngine):
            options["async_engine"] = self._given
        elif self._given is not None:
            options["engine"] = self._given
        else:
            settings = settings.replace(database_url=self._temporary_url())
        runtime = mq._open(settings, **options)
        self._before, mq._runtime = mq._runtime, runtime

    def _temporary_url(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="reliable-mq-test-")
        return f"sqlite:///{Path(self._folder.name) / 'test.db'}"

    def _restore(self) -> None:
        if self._before is not None:
            self._mq._runtime, self._before = self._before, None
        MemoryBroker.forget(self._name)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def engine(self) -> Engine:
        """The database of this test."""
        return self._mq.store.engine

    # --- doing ----------------------------------------------------------------------------------

    def run(self, through: float | timedelta = 0) -> Counts:
        """Run relay, handlers and due retries until nothing moves.

        With *through* (seconds) the clock goes on that far, from due retry to due retry, and
        everything that comes due on the way is run.
        """
        return self._through(seconds(through), self._mq.run_until_idle)

    def _through(self, through: float, run: Callable[[float], Counts]) -> Counts:
        left = through
        total = run(TIMEOUT)
        while (wait := self._next_due()) is not None and wait <= left:
            left -= self._go_on(wait)
            total = _add(total, run(TIMEOUT))
        self.clock.advance(left)
        return total

    async def arun(self, through: float | timedelta = 0) -> Counts:
        """:meth:`run`, with async handlers on the caller's event loop."""
        left = seconds(through)
        total = await self._mq.arun_until_idle(TIMEOUT)
        while (wait := await asyncio.to_thread(self._next_due)) is not None and wait <= left:
            left -= self._go_on(wait)
            total = _add(total, await self._mq.arun_until_idle(TIMEOUT))
        self.clock.advance(left)
        return total

    def _go_on(self, wait: float) -> float:
        step = max(wait, _STEP.total_seconds())
        self.clock.advance(step)
        return step

    def _next_due(self) -> float | None:
        """Return the seconds until the first retry is due, None if none waits."""
        retries = Retries(self._mq.store)
        with self._mq.store.engine.connect() as connection:
            found = [
                retries.next_due_in(connection, spec.group, spec.topic, heads_only=spec.ordered)
                for spec in self._mq.handlers
            ]
        return min((wait for wait in found if wait is not None), default=None)

    def deliver(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        group: str | None = None,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
    ) -> Outcome:
        """Put a message on the broker, run everything, and tell what became of it.

        *payload* as ``publish`` takes it. *group* says whose outcome is meant where the topic has
        several handlers.
        """
        chosen = self._group_of(topic, group)
        with self._watching(chosen) as outcomes:
            message = self._put(topic, payload, key, headers, message_id)
            self._mq.run_until_idle(TIMEOUT)
        return outcomes.get(message.id, Outcome(result="parked"))

    async def adeliver(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        group: str | None = None,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
    ) -> Outcome:
        """:meth:`deliver`, with async handlers on the caller's event loop."""
        chosen = self._group_of(topic, group)
        with self._watching(chosen) as outcomes:
            message = self._put(topic, payload, key, headers, message_id)
            await self._mq.arun_until_idle(TIMEOUT)
        return outcomes.get(message.id, Outcome(result="parked"))

    def _put(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        key: str | None,
        headers: Mapping[str, HeaderValue] | None,
        message_id: str | None,
    ) -> Message:
        message = self._mq._message(topic, payload, key, headers, message_id, None)
        (outcome,) = self._mq._runtime.adapter.publish([message], TIMEOUT)
        if cause := getattr(outcome, "cause", None):
            raise ConfigurationError(f"the broker of the test did not take the message: {cause}")
        return message

    def _group_of(self, topic: Topic[Any] | str, group: str | None) -> tuple[str, str]:
        name = topic.name if isinstance(topic, Topic) else topic
        groups = [
            s.group for s in self._mq.handlers if s.topic == name and group in (None, s.group)
        ]
        if len(groups) != 1:
            raise ConfigurationError(
                f"topic {name!r} has the groups {groups or 'none'}: name the one you mean"
            )
        return name, groups[0]

    @contextmanager
    def _watching(self, group: tuple[str, str]) -> Iterator[dict[str, Outcome]]:
        outcomes: dict[str, Outcome] = {}

        def on_event(event_: ev.Event) -> None:
            where = (getattr(event_, "topic", None), getattr(event_, "group", None))
            if where == group and (outcome := _outcome(event_)) is not None:
                outcomes[event_.message_id] = outcome  # type: ignore[attr-defined]

        unsubscribe = self._mq.events.subscribe(ev.Event, on_event)
        try:
            yield outcomes
        finally:
            unsubscribe()

    # --- looking --------------------------------------------------------------------------------

    def published(self, topic: Topic[Any] | str | None = None) -> list[Message]:
        """Return what the broker has stored (of *topic*), in order."""
        return self.broker.published(topic.name if isinstance(topic, Topic) else topic)

    def dead_letters(self, topic: str | None = None, group: str | None = None) -> list[DeadLetter]:
        """Return the dead letters, up to 1,000."""
        found = operations.dead_letters(self._mq.store, topic=topic, group=group, limit=1000)
        return [one.letter for one in found]

    async def adead_letters(
        self, topic: str | None = None, group: str | None = None
    ) -> list[DeadLetter]:
        """:meth:`dead_letters`, without blocking the event loop."""
        return await asyncio.to_thread(self.dead_letters, topic, group)


def _outcome(event_: ev.Event) -> Outcome | None:
    match event_:
        case ev.MessageHandled(attempt=attempt):
            return Outcome(result="handled", attempts=attempt)
        case ev.DuplicateSkipped():
            return Outcome(result="duplicate")
        case ev.MessageRetried(attempt=attempt, cause=cause):
            return Outcome(result="retried", attempts=attempt, cause=cause)
        case ev.MessageDeadLettered(attempts=attempts, cause=cause):
            return Outcome(result="dead-lettered", attempts=attempts, cause=cause)
    return None


def _add(one: Counts, other: Counts) -> Counts:
    return Counts(
        sent=one.sent + other.sent,
        handled=one.handled + other.handled,
        duplicates=one.duplicates + other.duplicates,
        retried=one.retried + other.retried,
        dead_lettered=one.dead_lettered + other.dead_lettered,
    )
