"""The library's front door: :class:`ReliableMQ`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from sqlalchemy import MetaData

from reliable_mq import operations
from reliable_mq.adapter import Refused, Sent, TopicSpec
from reliable_mq.consumer.outputs import collector
from reliable_mq.declaring import (
    TopicBook,
    check_retention,
    groups_to_declare,
    topics_to_declare,
)
from reliable_mq.durations import QUIET, seconds
from reliable_mq.errors import (
    ConfigurationError,
    PublishRejectedError,
    PublishUnconfirmedError,
    TransportError,
)
from reliable_mq.events import Events
from reliable_mq.handlers import (
    Guarantee,
    GuaranteeName,
    HandlerRegistry,
    HandlerSpec,
    build_handler,
)
from reliable_mq.message import DeadLetter, Delivery, HeaderValue, Message, Topic
from reliable_mq.names import check_topic
from reliable_mq.publishing import build_message
from reliable_mq.retry import RetryPolicy
from reliable_mq.running import Running, Signals, check_main_thread, refuse_on_event_loop
from reliable_mq.runtime import Runtime
from reliable_mq.settings import Settings
from reliable_mq.status import Counts, Status
from reliable_mq.store import Store, current, outbox
from reliable_mq.store.texts import cause_of
from reliable_mq.store.transactions import Transaction

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

    from reliable_mq.consumer.lanes import AnyContext
    from reliable_mq.service import Service

    AnySession = (
        Session
        | AsyncSession
        | Connection
        | AsyncConnection
        | scoped_session[Any]
        | async_scoped_session[Any]
    )

log = logging.getLogger("reliable_mq")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class ReliableMQ:
    """Topics, handlers and the outbox of one application, over one database and one broker.

    The constructor does no I/O: it checks settings, URL schemes and installed packages. With
    *engine* or *async_engine* the application's own database is used (and not closed); handlers
    then get sessions from *session_factory* and *async_session_factory* where given. Thread-safe.

    Raises :class:`ConfigurationError` (:class:`MissingExtraError` for a package) at once for
    what cannot work.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        session_factory: sessionmaker[Any] | Callable[..., Session] | None = None,
        async_session_factory: async_sessionmaker[Any] | Callable[..., AsyncSession] | None = None,
    ) -> None:
        self._settings = Settings() if settings is None else settings
        if (engine or async_engine) and "database_url" in self._settings.model_fields_set:
            raise ConfigurationError(
                "an engine and database_url were both given: remove one of them"
            )
        self._events = Events()
        self._topics = TopicBook()
        self._handlers = HandlerRegistry()
        self._around: Callable[[Delivery], AnyContext] | None = None
        self._service: Service | None = None
        self._factories: dict[str, Any] = {
            "session_factory": session_factory,
            "async_session_factory": async_session_factory,
        }
        self._runtime = self._open(self._settings, engine=engine, async_engine=async_engine)

    def _open(self, settings: Settings, **options: Any) -> Runtime:
        return Runtime(settings, self._topics, **self._factories, **options)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def store(self) -> Store:
        """The application's database with the library's tables: for tools."""
        return self._runtime.store

    @property
    def events(self) -> Events:
        """Typed subscriptions to what happens in this process."""
        return self._events

    @property
    def handlers(self) -> tuple[HandlerSpec, ...]:
        """The handlers registered so far."""
        return tuple(self._handlers)

    @property
    def topics(self) -> Mapping[str, TopicSpec]:
        """The topics of :meth:`topic` and of the handlers' dead letters so far, by name."""
        return self._topics

    # --- declaring what there is ----------------------------------------------------------------

    @overload
    def topic(
        self,
        name: str,
        payload: None = None,
        /,
        *,
        partitions: int | None = None,
        replication_factor: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Topic[Any]: ...

    @overload
    def topic(
        self,
        name: str,
        payload: type[T],
        /,
        *,
        partitions: int | None = None,
        replication_factor: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Topic[T]: ...

    @overload
    def topic(
        self,
        name: str,
        payload: Any,
        /,
        *,
        partitions: int | None = None,
        replication_factor: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Topic[Any]: ...

    def topic(
        self,
        name: str,
        payload: Any = None,
        /,
        *,
        partitions: int | None = None,
        replication_factor: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Topic[Any]:
        """Return a topic of this application; :meth:`declare` creates it.

        Messages of a key go to partition murmur2(key) % *partitions*, on every broker; at most
        one process of an ordered group works on a partition. Without a number, what exists
        counts, else 1. *options* are the broker's own (Kafka: topic configuration; Redis and
        ``sql://``: ``retention`` in seconds). The number of partitions is never changed later.
        """
        for label, number in (
            ("partitions", partitions),
            ("replication_factor", replication_factor),
        ):
            if number is not None and (type(number) is not int or not 1 <= number <= 10_000):
                raise ConfigurationError(
                    f"topic {name!r}: {label} must be a whole number from 1 to 10000, "
                    f"got {number!r}"
                )
        made: Topic[Any] = Topic(
            check_topic(name), payload, partitions, replication_factor, dict(options or {})
        )
        self._topics.add(made)
        return made

    def handler(
        self,
        topic: Topic[Any] | str,
        *,
        group: str | None = None,
        ordered: bool = False,
        concurrency: int = 1,
        transaction_size: int = 1,
        retry: RetryPolicy | None = None,
        guarantee: Guarantee | GuaranteeName | None = None,
        timeout: float | timedelta | None = None,
    ) -> Callable[[F], F]:
        """Register the decorated function as the handler of *group* on *topic*.

        The function is returned unchanged. Its first parameter is the payload, decoded by its
        annotation; others are filled by theirs: ``Session``, ``Connection`` (or the async ones),
        :class:`Message`, :class:`Delivery`, :class:`ReliableMQ`.

        *ordered*: the messages of a key take effect in the order they were committed.
        *concurrency*: how many run at once in this process (keys, when ordered).
        *transaction_size*: up to so many messages share a transaction, if they are there.
        *retry*: instead of ``settings.retry``. *timeout* (seconds; ``async def`` only) cancels
        an attempt, which then has failed. *guarantee*: see :class:`Guarantee`.

        Raises :class:`ConfigurationError` at once for anything that cannot work.
        """
        frame = sys._getframe(1)

        def register(function: F) -> F:
            self._register(
                function,
                frame,
                topic=topic,
                group=group,
                ordered=ordered,
                concurrency=concurrency,
                transaction_size=transaction_size,
                retry=retry,
                guarantee=guarantee,
                timeout=timeout,
            )
            return function

        return register

    def _register(self, function: Callable[..., Any], frame: FrameType, **options: Any) -> None:
        spec = build_handler(
            function,
            settings=self._settings,
            frame=frame,
            mq_type=type(self),
            async_driver_available=self._runtime.store.require_async,
            **options,
        )
        self._check_transactions(spec)
        self._handlers.add(spec)
        topic = options["topic"]
        if isinstance(topic, Topic):
            self._topics.add(topic)
        if self._settings.dead_letter.publish:
            self._topics.add_dead_letters(
                self._settings.dead_letter.topic_for(spec.topic, spec.group)
            )
        self._runtime.declared = False

    def _check_transactions(self, spec: HandlerSpec) -> None:
        adapter = self._runtime.adapter
        if spec.guarantee is Guarantee.EXACTLY_ONCE and not adapter.capabilities.transactions:
            raise ConfigurationError(
                f"handler {spec.call.name}: guarantee 'exactly-once' needs a broker that stores "
                f"outputs and acknowledgements in one transaction, and the adapter "
                f"{adapter.name!r} cannot: use 'effectively-once', or a broker_url of Kafka"
            )

    def around(
        self, function: Callable[[Delivery], AnyContext]
    ) -> Callable[[Delivery], AnyContext]:
        """Enter ``function(delivery)``, a context manager, around each attempt.

        On the handler's thread or loop, outside the transaction (inside it, around each call,
        where ``transaction_size`` > 1). An async context manager needs an async handler. An
        error in it is a failed attempt. One function per application; usable as a decorator.
        """
        if self._around is not None and self._around is not function:
            raise ConfigurationError("around() was given a function already: combine the two")
        self._around = function
        return function

    def include_tables(self, metadata: MetaData) -> None:
        """Add the library's tables to *metadata*, for migration tools such as Alembic."""
        self._runtime.store.include_tables(metadata)

    def declare(self) -> None:
        """Create what is missing: tables, topics, queues, groups. Blocks; idempotent.

        Alters nothing that exists. Raises :class:`ConfigurationError` where what exists differs,
        and :class:`TransportError` where the broker cannot be reached.
        """
        refuse_on_event_loop("declare", "adeclare")
        runtime = self._runtime
        with runtime.declare_lock:
            specs = self.handlers
            runtime.store.create(instance=runtime.instance)
            operations.declare_groups(runtime.store, specs)
            operations.check_nothing_waits(runtime.store, specs)
            topics = topics_to_declare(self._topics, specs)
            runtime.adapter.declare(topics, groups_to_declare(specs))
            bound = runtime.adapter.redelivery_bound([spec.topic for spec in specs])
            check_retention(self._settings, specs, bound)
            runtime.declared = True

    async def adeclare(self) -> None:
        """:meth:`declare`, without blocking the event loop."""
        await asyncio.to_thread(self.declare)

    def _ensure_declared(self) -> None:
        if self._settings.auto_declare and not self._runtime.declared:
            self.declare()

    def _prepare_transaction(self) -> None:
        """Declare, as far as a transaction needs it: the tables. The broker may be away."""
        if self._settings.auto_declare and not self._runtime.declared:
            with self._runtime.declare_lock:
                self._declare_tables_at_least()

    def _declare_tables_at_least(self) -> None:
        runtime = self._runtime
        if runtime.declared or runtime.clock.monotonic() < runtime.declare_again_at:
            return
        try:
            self.declare()
        except TransportError as error:
            # Asked again now and then: each time may take the client's connection time-out.
            runtime.declare_again_at = runtime.clock.monotonic() + QUIET
            log.warning("topics are not declared yet, messages wait: %s", cause_of(error, 1000))

    # --- publishing -----------------------------------------------------------------------------

    @overload
    def publish(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        session: AnySession | None = None,
    ) -> Message: ...

    @overload
    def publish(
        self,
        topic: str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        session: AnySession | None = None,
    ) -> Message: ...

    def publish(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        session: AnySession | None = None,
    ) -> Message:
        """Put a message into the outbox, inside the caller's transaction; return it.

        It is sent if that transaction commits, and never if it (or the savepoint) is rolled
        back. Never awaits, never talks to the broker. Without *session* the innermost current
        :meth:`transaction` or handler transaction on the same database is meant. *key* orders:
        messages of one key are sent in the order of their commits. *message_id* is the
        idempotency key: consumers apply one id once. The payload is encoded at once.

        Inside a handler with ``guarantee="exactly-once"``, without *session*, the message goes
        into the transaction of the delivery instead.

        Raises :class:`NoTransactionError`, :class:`InvalidMessageError`, and
        :class:`ConfigurationError` where the session's database has no outbox of ours.
        """
        message = self._message(topic, payload, key, headers, message_id, content_type)
        self._store_message(message, session)
        return message

    def _store_message(self, message: Message, session: AnySession | None) -> None:
        runtime = self._runtime
        outputs = collector(runtime.store, runtime.instance) if session is None else None
        if outputs is not None:
            outputs.append(message)
            return
        target = session if session is not None else current.required(self._runtime.store)
        outbox.append(self._runtime.store, target, message)

    def _message(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        key: str | None,
        headers: Mapping[str, HeaderValue] | None,
        message_id: str | None,
        content_type: str | None,
    ) -> Message:
        settings = self._settings
        name, type_ = (topic.name, topic.payload) if isinstance(topic, Topic) else (topic, None)
        return build_message(
            name,
            payload,
            payload_type=type_,
            key=key,
            headers=headers,
            message_id=message_id,
            content_type=content_type,
            clock=self._runtime.clock,
            max_message_bytes=settings.max_message_bytes,
            max_header_count=settings.max_header_count,
            max_header_bytes=settings.max_header_bytes,
        )

    @overload
    def publish_direct(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Message: ...

    @overload
    def publish_direct(
        self,
        topic: str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Message: ...

    def publish_direct(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Message:
        """Send a message now, without the outbox; return once the broker has it durably.

        Blocks up to *timeout* seconds (default ``relay.publish_timeout``). Not part of any
        transaction: where it must happen together with a change in the database, use
        :meth:`publish`.

        Raises :class:`PublishUnconfirmedError` (unknown, or no route yet: calling again with the
        same ``message_id`` is safe), :class:`PublishRejectedError` (refused for good),
        :class:`InvalidMessageError`.
        """
        refuse_on_event_loop("publish_direct", "apublish_direct")
        self._refuse_inside_own_transaction()
        message = self._message(topic, payload, key, headers, message_id, content_type)
        self._send(message, timeout)
        return message

    @overload
    async def apublish_direct(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Message: ...

    @overload
    async def apublish_direct(
        self,
        topic: str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Message: ...

    async def apublish_direct(
        self,
        topic: Topic[Any] | str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        message_id: str | None = None,
        content_type: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Message:
        """:meth:`publish_direct`, without blocking the event loop."""
        self._refuse_inside_own_transaction()
        message = self._message(topic, payload, key, headers, message_id, content_type)
        await asyncio.to_thread(self._send, message, timeout)
        return message

    def _refuse_inside_own_transaction(self) -> None:
        runtime = self._runtime
        entry = current.innermost(runtime.store)
        if runtime.adapter.name == "sql" and entry is not None and not entry.ended:
            raise ConfigurationError(
                "publish_direct inside a transaction on the database that is the broker too: "
                "use publish (SQLite would wait for itself)"
            )

    def _send(self, message: Message, timeout: float | timedelta | None) -> None:
        self._ensure_declared()
        limit = seconds(self._settings.relay.publish_timeout if timeout is None else timeout)
        (outcome,) = self._runtime.adapter.publish([message], limit)
        if isinstance(outcome, Sent):
            return
        text = f"message {message.id!r} for {message.topic}: {outcome.cause}"
        if isinstance(outcome, Refused):
            raise PublishRejectedError(text)
        raise PublishUnconfirmedError(text)

    def transaction(self) -> Transaction:
        """Return a transaction on the configured database, as ``with`` or ``async with``.

        Gives a ``Session`` or an ``AsyncSession``; commits at the end of the block, rolls back on
        an exception. Inside a current one it is a savepoint of it. :meth:`publish` without a
        session goes into it. The broker need not be there.
        """
        return Transaction(self._runtime.store, prepare=self._prepare_transaction)

    # --- running --------------------------------------------------------------------------------

    def _new_service(
        self, relay: bool, consume: bool, loop: asyncio.AbstractEventLoop | None
    ) -> Service:
        # Half of the library, and a process that only publishes needs nothing of it.
        from reliable_mq.service import Service

        return Service(
            self._runtime,
            self._settings,
            self._events,
            self.handlers if consume else (),
            relay=relay,
            around=self._around,
            application=self,
            loop=loop,
        )

    def run(self, *, relay: bool = True, consume: bool = True) -> None:
        """Run relay and consumers until SIGTERM or SIGINT; the main thread only.

        On the signal: takes nothing new in, lets handlers end within
        ``consumer.shutdown_timeout``, leaves the rest unacknowledged, returns. A second signal
        ends the process at once.

        Where broker or database cannot be reached it waits for them, and says so; anything else
        that keeps it from starting is raised. A signal that comes during the start is obeyed at
        once.
        """
        refuse_on_event_loop("run", "running")
        check_main_thread()
        with Signals() as signals:
            self.running(relay=relay, consume=consume).until(signals)

    def running(self, *, relay: bool = True, consume: bool = True) -> Running:
        """Return the same as a context manager, ``with`` or ``async with``.

        Leaving it stops as :meth:`run` does. Under ``async with``, async handlers run on the
        caller's event loop; under ``with``, on one of our own. The block is entered although
        broker or database cannot be reached: the parts are ``stalled`` until they can.
        """
        return Running(self, relay=relay, consume=consume)

    def run_until_idle(
        self, timeout: float | timedelta = 30.0, *, relay: bool = True, consume: bool = True
    ) -> Counts:
        """Run until nothing can move now, and return what this process did.

        Held messages, topics in back-off and retries due later do not count as movable. Raises
        ``TimeoutError`` that names what is left, and at once where broker or database cannot be
        reached at the start.
        """
        refuse_on_event_loop("run_until_idle", "arun_until_idle")
        with Running(self, relay=relay, consume=consume, patient=False) as service:
            return service.wait_idle(seconds(timeout))

    async def arun_until_idle(
        self, timeout: float | timedelta = 30.0, *, relay: bool = True, consume: bool = True
    ) -> Counts:
        """:meth:`run_until_idle`, with async handlers on the caller's event loop."""
        async with Running(self, relay=relay, consume=consume, patient=False) as service:
            return await asyncio.to_thread(service.wait_idle, seconds(timeout))

    # --- looking and mending --------------------------------------------------------------------

    def status(self) -> Status:
        """Return outbox, groups and this process's parts. Blocks; a lag not known is None."""
        refuse_on_event_loop("status", "astatus")
        parts = self._service.parts() if self._service is not None else None
        return operations.status(
            self._runtime.store, self._runtime.adapter, self.handlers, parts=parts
        )

    async def astatus(self) -> Status:
        """:meth:`status`, without blocking the event loop."""
        return await asyncio.to_thread(self.status)

    def dead_letters(
        self,
        topic: str | None = None,
        group: str | None = None,
        *,
        limit: int = 100,
        after: int | None = None,
    ) -> list[DeadLetter]:
        """Return up to *limit* dead letters by rising id, those behind *after*. Blocks."""
        refuse_on_event_loop("dead_letters", "adead_letters")
        stored = operations.dead_letters(
            self._runtime.store, topic=topic, group=group, limit=limit, after=after
        )
        return [one.letter for one in stored]

    async def adead_letters(
        self,
        topic: str | None = None,
        group: str | None = None,
        *,
        limit: int = 100,
        after: int | None = None,
    ) -> list[DeadLetter]:
        """:meth:`dead_letters`, without blocking the event loop."""
        return await asyncio.to_thread(self.dead_letters, topic, group, limit=limit, after=after)

    def replay(self, dead_letter_id: int) -> bool:
        """Let the group handle a dead letter again, attempts counted anew; once. Blocks.

        For that group only, and outside the order promise. False: it was replayed or discarded
        before. Raises ``ConfigurationError`` where the group's handler here is exactly-once by
        now: it would never come to it.
        """
        refuse_on_event_loop("replay", "areplay")
        operations.check_replayable(self._runtime.store, dead_letter_id, self._handlers)
        replayed = operations.replay(self._runtime.store, dead_letter_id)
        if replayed and self._service is not None and self._service.retries is not None:
            self._service.retries.wake()
        return replayed

    async def areplay(self, dead_letter_id: int) -> bool:
        """:meth:`replay`, without blocking the event loop."""
        return await asyncio.to_thread(self.replay, dead_letter_id)

    def discard(self, dead_letter_id: int) -> bool:
        """Delete a dead letter for good. Blocks. False: it was replayed or discarded before."""
        refuse_on_event_loop("discard", "adiscard")
        return operations.discard(self._runtime.store, dead_letter_id)

    async def adiscard(self, dead_letter_id: int) -> bool:
        """:meth:`discard`, without blocking the event loop."""
        return await asyncio.to_thread(self.discard, dead_letter_id)

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Close connections and what was opened here; a given engine stays open. Idempotent.

        What still runs here is stopped before, as at the end of :meth:`running`. Blocks.
        """
        refuse_on_event_loop("close", "aclose")
        self._stop_service()
        self._runtime.close()

    async def aclose(self) -> None:
        """:meth:`close`, for the event loop that used it."""
        await asyncio.to_thread(self._stop_service)
        await self._runtime.aclose()

    def _stop_service(self) -> None:
        service = self._service
        if service is not None:
            service.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
