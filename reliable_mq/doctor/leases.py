"""Leases: who runs, who ended without a word, and what nobody takes care of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, func, not_, or_, select

from reliable_mq.adapter import Finding, Severity
from reliable_mq.store import Store
from reliable_mq.store.leases import MEMBER


@dataclass(frozen=True, slots=True)
class Share:
    """The leases of one kind. ``expired`` ones still name an owner, for ``silent`` seconds."""

    kind: str
    living: int
    expired: int
    free: int
    silent: float

    @property
    def alive(self) -> bool:
        """Tell whether any process takes part."""
        return self.living > 0


def read_shares(connection: Connection, store: Store) -> dict[str, Share]:
    """Return the leases by kind, as the database's clock sees them now."""
    c, now = store.tables.lease.c, store.now()
    living = and_(c.owner.is_not(None), c.expires_at > now)
    # A member's row is only a sign of life: what it leaves behind hinders nobody.
    thing = not_(c.name.like(MEMBER + "%"))
    expired = and_(thing, c.owner.is_not(None), c.expires_at <= now)
    free = and_(thing, or_(c.owner.is_(None), c.expires_at <= now))
    query = select(
        c.kind,
        _count(living).label("living"),
        _count(expired).label("expired"),
        _count(free).label("free"),
        (now - func.max(case((expired, c.expires_at), else_=None))).label("silent"),
    ).group_by(c.kind)
    return {
        row.kind: Share(
            kind=row.kind,
            living=int(row.living),
            expired=int(row.expired),
            free=int(row.free),
            silent=int(row.silent or 0) / 1e6,
        )
        for row in connection.execute(query)
    }


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def named(kind: str) -> str:
    """Return what the leases of *kind* are on, for a person."""
    what, _, rest = kind.partition(":")
    topic, _, group = rest.rpartition(":")
    if what == "retry":
        return f"retries of group {group} of topic {topic}"
    if what == "topic":
        return f"partitions of topic {topic} for group {group}"
    return kind


def lease_findings(shares: Iterable[Share]) -> Iterator[Finding]:
    """Yield what was left behind, and what nobody has although somebody could."""
    for share in shares:
        if share.expired and not share.alive:
            yield Finding(
                code="lease-expired",
                severity=Severity.WARNING,
                subject=f"leases: {named(share.kind)}",
                what=f"{share.expired} leases ran out {share.silent:.0f} s ago and still name "
                "their owner",
                why="the process ended without giving them back (it was killed, or lost the "
                "database), and no other took over: what they are on stands still",
                remedy="start a process that takes over; it needs nothing else",
            )
        elif share.free and share.alive:
            yield Finding(
                code="lease-unowned",
                severity=Severity.INFO,
                subject=f"leases: {named(share.kind)}",
                what=f"{share.free} leases have no owner at the moment, though a process runs",
                why="a process that starts or ends hands them on within seconds; what they are on "
                "waits for that",
                remedy="look again in a minute; if they are the same, restart the process",
            )


def is_alive(shares: Mapping[str, Share], kind: str) -> bool:
    """Tell whether any process holds or shares leases of *kind*."""
    share = shares.get(kind)
    return share is not None and share.alive
