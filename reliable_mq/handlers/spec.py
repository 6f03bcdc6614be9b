"""A handler with its options, checked together, and the set of all handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import FrameType
from typing import Any, Literal, TypeAlias

from reliable_mq.durations import seconds
from reliable_mq.handlers.call import HandlerCall
from reliable_mq.handlers.inspection import handler_error, inspect_handler
from reliable_mq.message import Topic
from reliable_mq.names import check_group, check_topic
from reliable_mq.retry import RetryPolicy
from reliable_mq.settings import Settings

MAX_CONCURRENCY = 1000
MAX_TRANSACTION_SIZE = 1000


class Guarantee(StrEnum):
    """What a handler is promised; the strings may be used in place of the members."""

    AT_MOST_ONCE = "at-most-once"
    """Acknowledged, then handled: a crash loses the message, an error is a dead letter at once."""

    AT_LEAST_ONCE = "at-least-once"
    """Handled, then acknowledged: a crash in between repeats the handler."""

    EFFECTIVELY_ONCE = "effectively-once"
    """The default: its effects in the database are committed once, together with the record."""

    EXACTLY_ONCE = "exactly-once"
    """Kafka to Kafka: what it publishes and the end of its delivery are one Kafka transaction."""


GuaranteeName: TypeAlias = Literal[
    "at-most-once", "at-least-once", "effectively-once", "exactly-once"
]


@dataclass(frozen=True, kw_only=True)
class HandlerSpec:
    """A handler and how its group takes messages from its topic; the options fit together.

    ``timeout`` is in seconds and None for a sync handler; ``retry`` allows a single attempt
    under ``at-most-once``.
    """

    call: HandlerCall
    topic: str
    group: str
    ordered: bool
    concurrency: int
    transaction_size: int
    retry: RetryPolicy
    guarantee: Guarantee
    timeout: float | None

    @property
    def key(self) -> tuple[str, str]:
        """Topic and group: at most one handler of an application has them."""
        return self.topic, self.group


def build_handler(
    function: Callable[..., Any],
    *,
    topic: Topic[Any] | str,
    settings: Settings,
    group: str | None = None,
    ordered: bool = False,
    concurrency: int = 1,
    transaction_size: int = 1,
    retry: RetryPolicy | None = None,
    guarantee: Guarantee | GuaranteeName | None = None,
    timeout: float | timedelta | None = None,
    frame: FrameType | None = None,
    mq_type: type | None = None,
    async_driver_available: Callable[[], object] = lambda: None,
) -> HandlerSpec:
    """Return the handler that *function* makes with these options.

    Raises ``ConfigurationError`` for the first thing that cannot work. *frame* and *mq_type* are
    those of :func:`inspect_handler`. *async_driver_available* is called for an async handler and
    raises where its database driver is missing.
    """
    call = inspect_handler(function, frame=frame, mq_type=mq_type)
    chosen = _guarantee(call, guarantee)
    spec = HandlerSpec(
        call=call,
        topic=check_topic(topic.name if isinstance(topic, Topic) else topic),
        group=_group(call, group, settings),
        ordered=ordered,
        concurrency=_whole(call, "concurrency", concurrency, MAX_CONCURRENCY),
        transaction_size=_whole(call, "transaction_size", transaction_size, MAX_TRANSACTION_SIZE),
        retry=_retry(call, retry, chosen, settings),
        guarantee=chosen,
        timeout=_timeout(call, timeout),
    )
    _check_together(spec, settings)
    if settings.dead_letter.publish:
        settings.dead_letter.topic_for(spec.topic, spec.group)
    if call.is_async:
        async_driver_available()
    return spec


def _group(call: HandlerCall, group: str | None, settings: Settings) -> str:
    chosen = settings.group if group is None else group
    if chosen is None:
        raise handler_error(
            call.name,
            "it has no group: pass group=... or set settings.group. There is no default, because "
            "two services in one group would halve each other's messages",
        )
    return check_group(chosen)


def _whole(call: HandlerCall, option: str, value: int, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise handler_error(
            call.name, f"{option} must be a whole number from 1 to {limit}, got {value!r}"
        )
    return value


def _guarantee(call: HandlerCall, guarantee: Guarantee | str | None) -> Guarantee:
    if guarantee is None:
        return Guarantee.EFFECTIVELY_ONCE
    try:
        return Guarantee(guarantee)
    except ValueError:
        known = ", ".join(member.value for member in Guarantee)
        raise handler_error(
            call.name, f"guarantee {guarantee!r} is unknown: use one of {known}"
        ) from None


def _retry(
    call: HandlerCall, retry: RetryPolicy | None, guarantee: Guarantee, settings: Settings
) -> RetryPolicy:
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise handler_error(
            call.name,
            f"retry must be a RetryPolicy, got {type(retry).__name__}: "
            "write RetryPolicy(max_attempts=...)",
        )
    if guarantee is not Guarantee.AT_MOST_ONCE:
        return settings.retry if retry is None else retry
    if retry is not None:
        raise handler_error(
            call.name,
            "retry= has no meaning with guarantee 'at-most-once', where a message has a single "
            "attempt: remove it, or choose 'at-least-once' or 'effectively-once'",
        )
    return RetryPolicy.never()


def _timeout(call: HandlerCall, timeout: float | timedelta | None) -> float | None:
    if timeout is None:
        return None
    if not call.is_async:
        raise handler_error(
            call.name,
            "timeout= needs an `async def` handler, because a running sync function cannot be "
            "cancelled: remove it, or make the handler async",
        )
    try:
        limit = seconds(timeout)
    except (TypeError, ValueError, OverflowError) as error:
        raise handler_error(call.name, f"timeout {timeout!r} is not possible: {error}") from error
    if limit == 0:
        raise handler_error(call.name, "a timeout of 0 seconds would fail every message")
    return limit


def _check_together(spec: HandlerSpec, settings: Settings) -> None:
    guarantee = spec.guarantee
    if guarantee is Guarantee.EFFECTIVELY_ONCE:
        return
    if guarantee is Guarantee.EXACTLY_ONCE:
        _check_exactly_once(spec, settings)
    for option, wanted in (
        ("ordered=True", spec.ordered),
        (f"transaction_size={spec.transaction_size}", spec.transaction_size > 1),
    ):
        if wanted:
            raise handler_error(
                spec.call.name,
                f"{option} needs guarantee 'effectively-once', not {guarantee.value!r}: "
                "remove one of the two",
            )


def _check_exactly_once(spec: HandlerSpec, settings: Settings) -> None:
    if spec.call.database:
        asked = " and ".join(source.value for source in spec.call.database)
        raise handler_error(
            spec.call.name,
            f"guarantee 'exactly-once' covers Kafka, not the database, but it asks for {asked}: "
            "use 'effectively-once'",
        )
    if not settings.dead_letter.publish:
        raise handler_error(
            spec.call.name,
            "guarantee 'exactly-once' keeps its dead letters in their topic alone, and "
            "dead_letter.publish is off: switch it on, or use 'effectively-once'",
        )


class HandlerRegistry:
    """The handlers of one application, in the order of their decoration. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._specs: dict[tuple[str, str], HandlerSpec] = {}

    def add(self, spec: HandlerSpec) -> None:
        """Add *spec*; ``ConfigurationError`` if its topic and group have a handler already."""
        with self._lock:
            other = self._specs.setdefault(spec.key, spec)
        if other is not spec:
            raise handler_error(
                spec.call.name,
                f"topic {spec.topic!r} has the handler {other.call.name} in group "
                f"{spec.group!r} already: use another group, or one handler for the union of "
                "both payload types",
            )

    def __iter__(self) -> Iterator[HandlerSpec]:
        with self._lock:
            return iter(tuple(self._specs.values()))

    def __len__(self) -> int:
        return len(self._specs)
