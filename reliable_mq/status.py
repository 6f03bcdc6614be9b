"""What ``ReliableMQ.status`` and ``run_until_idle`` report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatus:
    """The outbox, of all processes: rows not confirmed by the broker yet.

    ``oldest_age`` is in seconds by the database's clock, None when empty. ``held`` rows were
    refused for good and wait for a person; they and ``pending`` do not overlap. ``unroutable``
    of the pending rows are waiting for a topic, a queue or a permission.
    """

    pending: int = 0
    oldest_age: float | None = None
    held: int = 0
    unroutable: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One group on one topic, of all processes.

    ``lag`` is what the broker has not had acknowledged (None where it could not be asked; on
    RabbitMQ only this process's share of what is delivered is counted), ``retries`` includes
    messages that wait behind an earlier one of their key.
    """

    lag: int | None = None
    retries: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A snapshot. ``groups`` is keyed by (topic, group).

    ``parts`` says for ``relay``, ``consumer`` and ``retries`` of this process: running, stalled
    (it cannot reach the broker or the database, or waits for retries) or off.
    """

    outbox: OutboxStatus
    groups: Mapping[tuple[str, str], GroupStatus] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes: ``groups`` as a list."""
        groups = [
            {"topic": topic, "group": group, **asdict(status)}
            for (topic, group), status in self.groups.items()
        ]
        return {"outbox": asdict(self.outbox), "groups": groups, "parts": dict(self.parts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What this process did, from the start of ``run_until_idle`` to its end."""

    sent: int = 0
    handled: int = 0
    duplicates: int = 0
    retried: int = 0
    dead_lettered: int = 0
