"""How a process comes to each crash point. A point without an entry fails a test."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Before(Enum):
    """What is done before the process is started that will be killed."""

    PUBLISH = auto()
    """The workload is in the outbox."""
    HOLD = auto()
    """One of its rows cannot be read, and will be held."""
    HELD = auto()
    """That row is held, and mended: it can be put back."""
    RELAY = auto()
    """The workload is on the broker, the outbox empty."""
    HANDLE = auto()
    """Everything is handled, or a dead letter."""
    REPLAY = auto()
    """Everything is handled, or a dead letter; all of these are replayed."""


class Meanwhile(Enum):
    """What is done while the process runs."""

    NOTHING = auto()
    SIGTERM = auto()
    """It is asked to stop while its handlers run."""
    JOIN = auto()
    """Another process joins its groups while its handlers run."""


@dataclass(frozen=True)
class Scenario:
    """One way to one point. *passage* says at which time it kills."""

    point: str
    kind: str = "plain"
    role: str = "run"
    before: Before = Before.PUBLISH
    meanwhile: Meanwhile = Meanwhile.NOTHING
    slow: float = 0.0
    healthy: bool = False
    """Whether every message can be handled: a batch with one that cannot is none."""
    passage: int = 1
    adapters: frozenset[str] = frozenset({"sql", "kafka", "rabbitmq", "redis"})

    @property
    def name(self) -> str:
        """Point, passage, and whose handlers."""
        kind = "" if self.kind == "plain" else f" ({self.kind})"
        return f"{self.point}:{self.passage}{kind}"


_KAFKA = frozenset({"kafka"})

_PLAIN = (
    "relay.claimed",
    "relay.before_publish",
    "publish.unconfirmed",
    "publish.answered",
    "relay.confirmed",
    "relay.deleted",
    "relay.settled",
    "consumer.received",
    "consumer.claimed",
    "consumer.handled",
    "consumer.before_commit",
    "consumer.committed",
    "consumer.before_ack",
    "consumer.acked",
    "parking.written",
    "parking.committed",
    "failure.retry_written",
    "failure.dead_written",
    "failure.committed",
    "failure.conflict_written",
    "failure.conflict_committed",
    "retry.locked",
    "retry.settled",
    "retry.postponed",
    "retry.buried",
)

_BATCH = ("batch.claimed", "batch.before_commit", "batch.committed")

SCENARIOS = (
    *(Scenario(point) for point in _PLAIN),
    *(Scenario(point, before=Before.RELAY, healthy=True) for point in _BATCH),
    Scenario("outbox.inserted", role="publish"),
    Scenario("outbox.released", role="release", before=Before.HELD),
    Scenario("relay.held", before=Before.HOLD),
    Scenario("relay.winding_up", meanwhile=Meanwhile.SIGTERM, slow=0.05),
    Scenario("consumer.draining", meanwhile=Meanwhile.SIGTERM, slow=0.05),
    Scenario("consumer.closing", meanwhile=Meanwhile.SIGTERM, slow=0.05),
    Scenario("consumer.lost", meanwhile=Meanwhile.JOIN, slow=0.5),
    Scenario("ack_first.settled", kind="most", before=Before.RELAY),
    Scenario("retry.begun", kind="most", before=Before.REPLAY),
    Scenario("replay.written", role="replay", before=Before.HANDLE),
    Scenario("replay.committed", role="replay", before=Before.HANDLE),
    Scenario("discard.written", role="discard", before=Before.HANDLE),
    Scenario("exactly_once.ready", kind="exactly", before=Before.RELAY, adapters=_KAFKA),
    Scenario("exactly_once.committed", kind="exactly", before=Before.RELAY, adapters=_KAFKA),
)
"""Each point once."""

MORE = (
    *(
        Scenario(point, kind="least")
        for point in ("consumer.handled", "consumer.before_ack", "failure.committed")
    ),
    *(
        Scenario(point, passage=3)
        for point in (
            "consumer.claimed",
            "consumer.handled",
            "consumer.before_commit",
            "consumer.committed",
            "failure.retry_written",
            "failure.committed",
            "retry.locked",
            "retry.settled",
        )
    ),
    *(Scenario(point, passage=2) for point in ("parking.committed", "consumer.acked")),
    *(Scenario(point, before=Before.RELAY, healthy=True, passage=2) for point in _BATCH),
)
"""Later passages, and other guarantees."""
