"""What a process tells of its sends and acknowledgements, for the story of a message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reliable_mq import ReliableMQ
from reliable_mq.adapter import Adapter, Handled, Outcome, Received
from reliable_mq.errors import ReliableMQError
from reliable_mq.events import (
    DuplicateSkipped,
    Event,
    MessageDeadLettered,
    MessageHandled,
    MessageHeld,
    MessageRetried,
)
from reliable_mq.message import Message
from tests.sweep.application import History

FACTS: tuple[type[Event], ...] = (
    DuplicateSkipped,
    MessageDeadLettered,
    MessageHandled,
    MessageHeld,
    MessageRetried,
)


class Recorder:
    """Notes sends, deliveries and acknowledgements of one process, and what became durable."""

    def __init__(self, mq: ReliableMQ, folder: Path) -> None:
        self._history = History(folder)
        for kind in FACTS:
            mq.events.subscribe(kind, self._fact)
        self._watch(mq._runtime.adapter)

    def _fact(self, event: Any) -> None:
        group = getattr(event, "group", None)
        attempt = getattr(event, "attempt", None)
        values = {"id": event.message_id, "group": group, "attempt": attempt}
        self._history.note(type(event).__name__, **values)

    def _watch(self, adapter: Adapter) -> None:
        publish, subscribe = adapter.publish, adapter.subscribe

        def recorded_publish(messages: Sequence[Message], timeout: float) -> list[Outcome]:
            outcomes = publish(messages, timeout)
            ends = [type(outcome).__name__ for outcome in outcomes]
            pairs = zip(messages, ends, strict=True)
            sent = [(number_of(m.body), m.id, m.topic, end) for m, end in pairs]
            self._history.note("publish", sent=sent)
            return outcomes

        adapter.publish = recorded_publish  # type: ignore[method-assign]
        adapter.subscribe = self._watched(subscribe)  # type: ignore[method-assign]
        if adapter.capabilities.transactions:
            transactional: Any = adapter
            joined = self._watched(transactional.subscribe_transactional)
            transactional.subscribe_transactional = joined

    def _watched(self, subscribe: Callable[..., Any]) -> Callable[..., Any]:
        def recorded_subscribe(*arguments: Any, **options: Any) -> Any:
            subscription = subscribe(*arguments, **options)
            self._watch_subscription(subscription, str(arguments[1:] or options))
            return subscription

        return recorded_subscribe

    def _watch_subscription(self, subscription: Any, who: str) -> None:
        if hasattr(subscription, "commit"):
            self._watch_commits(subscription, who)
        receive, ack, release = subscription.receive, subscription.ack, subscription.release

        def recorded_receive(limit: int, timeout: float) -> Any:
            batch = receive(limit, timeout)
            self._note("receive", who, batch.deliveries)
            return batch

        def recorded_ack(deliveries: Sequence[Received]) -> None:
            ack(deliveries)
            self._note("ack", who, deliveries)

        def recorded_release(deliveries: Sequence[Received]) -> None:
            release(deliveries)
            self._note("release", who, deliveries)

        subscription.receive = recorded_receive
        subscription.ack = recorded_ack
        subscription.release = recorded_release

    def _watch_commits(self, subscription: Any, who: str) -> None:
        commit = subscription.commit

        def recorded_commit(handled: Sequence[Handled]) -> Mapping[int, str]:
            try:
                refused: Mapping[int, str] = commit(handled)
            except ReliableMQError as error:
                self._note(f"not committed, {type(error).__name__}", who, _deliveries(handled))
                raise
            self._note(f"refused {refused}" if refused else "commit", who, _deliveries(handled))
            return refused

        subscription.commit = recorded_commit

    def _note(self, what: str, who: str, deliveries: Iterable[Received]) -> None:
        if numbers := [number_of(one.raw.body) for one in deliveries]:
            self._history.note(what, who=who, numbers=numbers)


def _deliveries(handled: Iterable[Handled]) -> list[Received]:
    return [one.delivery for one in handled]


def number_of(body: bytes) -> int:
    """Return the number of the job in *body*."""
    return int(json.loads(body)["number"])
