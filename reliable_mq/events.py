"""What happened, for metrics, tracing and logs.

``mq.events.subscribe(MessageHandled, callback)`` calls *callback* with each event of that type,
on the thread on which it happened, after the fact is durable. A callback must be quick; what it
raises is logged and changes nothing. Events carry no payloads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

log = logging.getLogger("reliable_mq")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; subscribing to it brings every one."""


@dataclass(frozen=True, slots=True)
class MessageSent(Event):
    """The broker confirmed a message of the outbox; ``age`` is seconds since its INSERT."""

    topic: str
    message_id: str
    age: float


@dataclass(frozen=True, slots=True)
class MessageHeld(Event):
    """The broker refused a message for good; it waits for a person, its key waits with it."""

    topic: str
    message_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class MessageHandled(Event):
    """A handler's effects are committed; ``duration`` is the attempt's seconds."""

    topic: str
    group: str
    message_id: str
    attempt: int
    duration: float


@dataclass(frozen=True, slots=True)
class DuplicateSkipped(Event):
    """A message this group has already taken responsibility for came again."""

    topic: str
    group: str
    message_id: str


@dataclass(frozen=True, slots=True)
class MessageRetried(Event):
    """An attempt failed; the next one is due in ``delay`` seconds (0: in place)."""

    topic: str
    group: str
    message_id: str
    attempt: int
    delay: float
    cause: str


@dataclass(frozen=True, slots=True)
class MessageDeadLettered(Event):
    """The group gave up on a message and keeps it as a dead letter."""

    topic: str
    group: str
    message_id: str
    attempts: int
    cause: str


@dataclass(frozen=True, slots=True)
class LeaseMoved(Event):
    """This process gained (``gained``) or lost the lease on a resource of this kind."""

    kind: str
    name: str
    gained: bool


@dataclass(frozen=True, slots=True)
class BrokerDown(Event):
    """A part of this process cannot reach the broker; once until it is back."""

    part: str
    cause: str


@dataclass(frozen=True, slots=True)
class BrokerUp(Event):
    """That part reached the broker again."""

    part: str


E = TypeVar("E", bound=Event)


class Events:
    """Subscriptions by event type. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}

    def subscribe(self, event: type[E], callback: Callable[[E], None]) -> Callable[[], None]:
        """Call *callback* with every *event* from now on; return a function that ends it."""
        with self._lock:
            self._callbacks[event] = (*self._callbacks.get(event, ()), callback)

        def unsubscribe() -> None:
            with self._lock:
                left = tuple(c for c in self._callbacks.get(event, ()) if c is not callback)
                self._callbacks[event] = left

        return unsubscribe

    def wants(self, event: type[Event]) -> bool:
        """Tell whether anybody listens, so that a hot path need not build the event."""
        return bool(self._callbacks.get(event) or self._callbacks.get(Event))

    def emit(self, event: Event) -> None:
        """Hand *event* to its subscribers. Never raises."""
        callbacks = self._callbacks.get(type(event), ()) + self._callbacks.get(Event, ())
        for callback in callbacks:
            try:
                callback(event)
            except Exception:
                log.exception("a subscriber of %s failed", type(event).__name__)
