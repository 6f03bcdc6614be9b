"""What a broker adapter promises. This file's docstrings are the contract.

An adapter moves bytes: it publishes with confirmation, receives, and acknowledges. It knows
nothing of retries, deduplication or dead letters, which live in the store. The suite in
``reliable_mq.testing.contract`` checks everything said here on the real broker.

Errors are translated once, here at the edge: whatever a client library raises leaves an adapter
as :class:`~reliable_mq.errors.TransportError` (trying again may help) or
:class:`~reliable_mq.errors.ConfigurationError` (a person must act), chained to its cause and
without secrets in its text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from reliable_mq.message import Message
from reliable_mq.wire import RawMessage

__all__ = [
    "SENT",
    "Adapter",
    "AdapterContext",
    "Batch",
    "Capabilities",
    "Finding",
    "GroupSpec",
    "Handled",
    "Lost",
    "Outcome",
    "Received",
    "Refused",
    "Sent",
    "Severity",
    "Subscription",
    "TopicSpec",
    "TransactionalAdapter",
    "TransactionalSubscription",
    "Unknown",
    "Unroutable",
]


# --- outcomes of a publish ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker has the message durably, as its documentation means it, and routed it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The message may or may not be stored (time-out, lost connection). Send the same id again."""

    cause: str


@dataclass(frozen=True, slots=True)
class Unroutable:
    """Not stored: no such topic, no queue bound, or not authorised. May change without us."""

    cause: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not stored, and never will be: too large, malformed."""

    cause: str


Outcome: TypeAlias = Sent | Unknown | Unroutable | Refused
SENT = Sent()


# --- what exists ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as the application asks for it; None is "whatever exists, else the default".

    ``catch_all`` asks for a place that keeps messages even while the topic has no group (a
    queue of the topic's own name on RabbitMQ): dead-letter topics are made so.
    """

    name: str
    partitions: int | None = None
    replication_factor: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    catch_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A consumer group of a topic. Whether it is ordered may decide how its queue is made."""

    topic: str
    group: str
    ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterContext:
    """What the common layer hands to an adapter's factory.

    ``topics`` is a live view by name of what the application declared so far: look a topic up
    at each use. ``instance`` is unique to this object in the world and safe in every broker's
    names ([A-Za-z0-9-]). ``lease`` is ``consumer.lease`` in seconds. ``store`` is the
    application's :class:`reliable_mq.store.Store`, for adapters that keep messages in it, else
    None. ``groups`` are to be looked at by ``inspect`` although ``declare`` was not called.
    """

    instance: str
    topics: Mapping[str, TopicSpec] = field(default_factory=dict)
    client_options: Mapping[str, object] = field(default_factory=dict)
    lease: float = 30.0
    max_message_bytes: int = 1_000_000
    store: Any = None
    groups: Collection[GroupSpec] = ()


# --- receiving ----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Received:
    """One delivery. ``receipt`` is the adapter's own and means nothing to others.

    ``partition`` and ``epoch`` name the ownership it was read under; deliveries of one partition
    and epoch arrive in the partition's order without a gap. Where a broker has no partitions to
    own (competing consumers), the adapter uses one name for each stream or queue and an epoch
    that rises with each connection.
    """

    raw: RawMessage
    partition: str
    epoch: int
    receipt: Any = None
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """Every delivery of *partition* read under *epoch* or an earlier one is no longer ours."""

    partition: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one ``receive`` brought. ``lost`` is to be applied before ``deliveries``."""

    deliveries: Sequence[Received] = ()
    lost: Sequence[Lost] = ()


class Subscription(Protocol):
    """One group's stream of deliveries.

    Thread ownership: every method is called by one thread, the same from ``receive`` to
    ``close``; a subscription needs no lock of its own against its user.
    """

    def receive(self, limit: int, timeout: float) -> Batch:
        """Return up to *limit* deliveries as soon as there are any, or none after *timeout* s.

        Never waits to fill. Serves the client on the way (heartbeats, rebalances, balance among
        members), so it is called often, at least every second; with *limit* 0 it does only that
        and delivers nothing, and must still do so when more than *timeout* passed since the last
        call. *timeout* 0 takes what is there. Raises ``TransportError`` while the broker cannot
        be reached: the next call tries to connect again by itself (bounded by *timeout* plus the
        client's connection time-out), and what was delivered on the broken connection is reported
        in ``lost``. A subscriber may hold at most ``prefetch`` unacknowledged deliveries.
        """
        ...

    def ack(self, deliveries: Sequence[Received]) -> None:
        """Tell the broker these are done, in any order.

        A delivery is durably done only when the broker says so; a crash before that means a
        redelivery, never a loss. A log commits only the contiguous prefix: acknowledging a later
        delivery leaves an earlier one redeliverable. Deliveries of a lost ownership, and ones
        acknowledged before, are ignored. May be lazy (committed within 1 second, and at
        ``close``); :meth:`flush` ends that. Raises ``TransportError`` where the broker did not
        answer.
        """
        ...

    def flush(self) -> None:
        """Block until everything acknowledged so far is durably done on the broker.

        An at-most-once handler runs right after this, whatever is lost then. Hence it raises
        ``TransportError`` where that is not known, and also as long as a loss has not been
        reported by ``receive``: an acknowledgement that came after it did nothing. What is not
        lost may be acknowledged again.
        """
        ...

    def release(self, deliveries: Sequence[Received]) -> None:
        """Hand these back unacknowledged, for redelivery to this or another consumer.

        In an ordered subscription, and always on a log, all later deliveries of their partitions
        go back too and the whole ownership of that epoch is reported in the next ``receive``'s
        ``lost``: the stream starts again at the first unacknowledged, in order, under a new epoch.
        """
        ...

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """Extend the hold on these: called at least every third of ``lease`` for all held ones.

        Must not raise for a delivery that is lost; the next ``receive`` reports it.
        """
        ...

    def hand_over(self, partition: str) -> None:
        """Give up the ownership of *partition* for another member, unacknowledged ones included.

        Reported in the next ``receive``'s ``lost``. Without effect where nothing is owned.
        """
        ...

    def close(self) -> None:
        """Commit what was acknowledged, hand everything else over, release the resources.

        Bounded to a few seconds, even with the broker gone; does not raise for that. What was
        not acknowledged is redelivered from its first, in order. Idempotent.
        """
        ...


# --- receiving and publishing in one step ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handled:
    """A delivery that is done, and the messages that its handler has published."""

    delivery: Received
    outputs: Sequence[Message] = ()


class TransactionalSubscription(Subscription, Protocol):
    """A subscription whose acknowledgements the broker stores together with new messages.

    Its acknowledgements take effect by :meth:`commit` alone, in the order of its calls: none made
    earlier is applied later.
    """

    def commit(self, handled: Sequence[Handled]) -> Mapping[int, Refused | Unroutable]:
        """Store all outputs and acknowledge all deliveries, or do nothing of both.

        Of each partition *handled* has the first deliveries that are not acknowledged, in order
        and without a gap. Blocks until it is committed (an empty mapping is returned), bounded by
        the adapter's own time-out. No consumer receives an output before, and the partition's
        next owner begins behind what was committed.

        Where outputs are refused for good, have no topic, or one that may not be written to,
        nothing is committed, and the mapping tells why for at least one position in *handled*, and
        for none whose outputs could have been stored: without these the others may be committed.
        Raises ``StaleDeliveryError`` where a delivery is not ours any more or the group is
        changing: nothing was committed, the next ``receive`` tells what is lost, and what is not
        may be tried again. Raises ``TransportError`` or ``ConfigurationError`` for anything else
        (no answer, no permission): either nothing was committed, and the same may be tried again;
        or it is not known, and the next ``receive`` reports the loss of all ownership, so that the
        stream starts again where the broker says.
        """
        ...

    def hold_back(self, partitions: Collection[str]) -> None:
        """Read no more of *partitions*, and go on with all others: each call says it for all.

        What was read already may still be delivered. Deliveries of these do not count into
        ``prefetch``, so that one partition which cannot go on does not stop all. What is not owned
        is passed over.
        """
        ...


# --- the adapter ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Where brokers differ in what a caller can rely on. Each flag is read by a contract test.

    ``durable``: messages outlive the process (not so for the memory broker).
    ``log``: a partition belongs to one member of a group at a time, ordered or not.
    ``detects_unroutable``: a publish to a topic nobody declared is ``Unroutable``.
    ``stable_position``: a foreign message without an id has a lasting place on the broker.
    ``raw_headers``: duplicate header names and bytes values survive the way.
    ``retains``: a group declared after a message was published still receives it.
    ``transactions``: acknowledgements and new messages are stored in one step; the adapter is a
    :class:`TransactionalAdapter`.
    """

    durable: bool = True
    log: bool = False
    detects_unroutable: bool = True
    stable_position: bool = True
    raw_headers: bool = True
    retains: bool = True
    transactions: bool = False


class Severity(StrEnum):
    """How bad a finding is: an error breaks a promise, a warning may, info is for knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing ``inspect`` saw: what is, why it matters, how to mend it.

    ``code`` names the kind of finding for good (``redis-appendfsync``), for filters and for the
    documentation; ``subject`` is what it was seen on.
    """

    severity: Severity
    subject: str
    what: str
    why: str
    remedy: str
    code: str = ""


@runtime_checkable
class Adapter(Protocol):
    """One broker. Thread-safe: any method may be called by any thread at any time.

    Made by the factory ``open_adapter(url, context)`` that an entry point of the group
    ``reliable_mq.adapters`` names by URL scheme. The factory checks the URL and the client
    options (unknown or promise-breaking ones: ``ConfigurationError``) and does no I/O; the first
    call that needs the broker connects.
    """

    @property
    def name(self) -> str:
        """Short lasting name of the kind of broker: ``kafka``, ``rabbitmq``, ``redis``, ``sql``."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this broker can do."""
        ...

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """Create what is missing; durable and idempotent, safe when several processes do it.

        Alters nothing that exists: a difference is a ``ConfigurationError`` naming what is asked
        and what exists. A group that is new starts at the earliest retained message. Raises
        ``TransportError`` where the broker cannot be reached; wrong credentials or a missing
        permission is a ``ConfigurationError`` at once.
        """
        ...

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Send *messages* and return one outcome each, in their order.

        Blocks until every outcome is known or *timeout* seconds passed; what has none by then is
        ``Unknown``, and nothing of it is still under way in the client that could be stored after
        a later publish of the same key. Prefix rule: where a message is not stored, no later
        message of the same (topic, key) in this call is stored either, and the later ones are
        ``Unknown`` or better known. Never raises for the broker's or the network's sake:
        those are outcomes. Wrong credentials are ``Unroutable`` or ``Unknown`` with their cause.
        """
        ...

    def subscribe(
        self, topics: Sequence[str], group: str, *, prefetch: int, ordered: bool
    ) -> Subscription:
        """Return a subscription of *group* to *topics* (at least one). No I/O before ``receive``.

        At most *prefetch* deliveries are unacknowledged at a time. With *ordered* at most one
        member of the group receives a partition's messages at a time, in order, without a gap
        from the first one not acknowledged; members share the partitions fairly. Topic and group
        must have been declared.
        """
        ...

    def lag(self, topic: str, group: str) -> int:
        """Return how many messages the group has not acknowledged, delivered ones included.

        Exact while nothing moves. Raises ``TransportError`` or ``ConfigurationError``.
        """
        ...

    def redelivery_bound(self, topics: Sequence[str]) -> timedelta | None:
        """Return how long after its publish the broker may still deliver a message of *topics*.

        None where the broker states no bound. The inbox must remember at least that long.
        """
        ...

    def inspect(self) -> list[Finding]:
        """Return what in the broker's own settings would break the promises."""
        ...

    def close(self) -> None:
        """Release connections. Publishes under way end as ``Unknown`` at the latest. Idempotent."""
        ...


@runtime_checkable
class TransactionalAdapter(Adapter, Protocol):
    """An adapter with the capability ``transactions``."""

    def subscribe_transactional(
        self, topics: Sequence[str], group: str, *, prefetch: int
    ) -> TransactionalSubscription:
        """Return a subscription as :meth:`Adapter.subscribe` does, with transactions."""
        ...


AdapterFactory: TypeAlias = "Any"
"""``Callable[[str, AdapterContext], Adapter]``, as an entry point names it."""
