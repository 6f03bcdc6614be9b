"""Leases: which process owns which named thing for a while, by the database's clock.

A row (kind, name) has an owner, an epoch that rises with each change of owner, a count of
renewals and a time of expiry. Beside the rows of the things, each living process has a row of the
same kind, named ``@owner``, by which the others know how many share.

A lease alone proves nothing after a pause: the process may have been stopped for an hour. So who
writes under a lease confirms it in the same transaction (:meth:`LeaseSet.confirm`), and what
cannot be made part of a transaction ends before :attr:`LeaseSet.until`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    Update,
    and_,
    delete,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from reliable_mq.clock import Clock
from reliable_mq.events import Events, LeaseMoved
from reliable_mq.store.store import Store
from reliable_mq.store.times import duration_micros

MEMBER = "@"
"""First character of the names of member rows; no owned thing may be named so."""

_SAFE_PART = 0.9
"""The part of a lease in which its holder relies on it: the rest is for clocks of unequal speed."""

_STALLED_AFTER = 2.0
_FORGOTTEN_AFTER = 2.0
"""Durations after which a silent holder is taken over whatever the database's clock says, and
after its expiry a member's row is removed."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one renewal brought: names and epochs held now, and how that differs from before."""

    epochs: Mapping[str, int]
    gained: frozenset[str]
    lost: frozenset[str]


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease as it was read. ``free`` means that anybody may take it, ``forgotten`` long ago."""

    name: str
    owner: str | None
    epoch: int
    renewals: int
    free: bool
    forgotten: bool = False

    @property
    def mark(self) -> tuple[str, int, int]:
        """What changes with every renewal and every change of owner."""
        return (self.name, self.epoch, self.renewals)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a renewal changes: ``keep`` and ``release`` of ours, ``take`` if still as read."""

    keep: tuple[str, ...]
    release: tuple[str, ...]
    take: tuple[LeaseRow, ...]
    share: int


def fair_plan(
    rows: Sequence[LeaseRow], *, owner: str, others: Collection[str], free: Collection[str]
) -> Plan:
    """Return what *owner* keeps, releases and takes where the *others* share *rows* with it.

    *free* are the names that may be taken. What does not divide evenly stays with those who have
    it, so that nothing moves for a member that comes while all have enough, and goes to the first
    owners by name besides; all shares together are all rows. Where to begin among the free ones
    depends on the owner, so that two candidates rarely want the same.
    """
    mine = [row.name for row in rows if row.owner == owner]
    holding = Counter(row.owner for row in rows if row.owner != owner and row.name not in free)
    holding[owner] = len(mine)
    everybody = sorted({*others, owner}, key=lambda one: (-holding[one], one))
    share, rest = divmod(len(rows), len(everybody))
    share += everybody.index(owner) < rest
    candidates = [row for row in rows if row.owner != owner and row.name in free]
    start = zlib.crc32(owner.encode()) % max(1, len(candidates))
    candidates = candidates[start:] + candidates[:start]
    wanted = max(0, share - len(mine))
    return Plan(tuple(mine[:share]), tuple(mine[share:]), tuple(candidates[:wanted]), share)


def ensure_leases(connection: Connection, store: Store, kind: str, names: Iterable[str]) -> None:
    """Add the rows that are missing, owned by nobody, in the caller's transaction. Idempotent."""
    rows = [{"kind": kind, "name": name} for name in names]
    if rows:
        connection.execute(store.dialect.insert_ignoring(store.tables.lease), rows)


class LeaseSet:
    """This process's share of the leases of one kind. Used by one thread at a time.

    *names* is the same in all processes. *owner* is unique in the world, 63 bytes at most.
    *duration* is in seconds. Nothing is held before the first :meth:`renew`, which is to be
    called at least every third of *duration*.

    Expiry is decided by the store's clock alone. Against one that jumps back, a lease is free too
    when neither its epoch nor its renewals changed for two durations of *this* process's
    monotonic clock. A take-over while the holder only believes itself alive is possible (it was
    stopped, the clock jumped forward): see the module's text for what that asks of users.
    """

    def __init__(
        self,
        store: Store,
        kind: str,
        names: Sequence[str],
        *,
        owner: str,
        duration: float,
        clock: Clock,
        events: Events | None = None,
    ) -> None:
        if len(owner.encode()) > 63:
            raise ValueError(f"a lease's owner must be short, {owner!r} has more than 63 bytes")
        self._store = store
        self._kind = kind
        self._names = tuple(names)
        self._owner = owner
        self._duration = duration
        self._clock = clock
        self._events = events
        self._marks: dict[str, tuple[tuple[str, int, int], float]] = {}
        self._held: Mapping[str, int] = MappingProxyType({})
        self._share = 0
        self._until = float("-inf")

    # --- what is held ----------------------------------------------------------------------------

    @property
    def held(self) -> Mapping[str, int]:
        """Names and epochs held, as of the last renewal that succeeded."""
        return self._held

    @property
    def until(self) -> float:
        """Monotonic time (of *clock*) by which anything done outside a transaction must end."""
        return self._until

    @property
    def wanting(self) -> bool:
        """Tell whether less than the fair share is held: renew soon, to get what comes free."""
        return len(self._held) < self._share

    def confirm(self, connection: Connection, names: Iterable[str]) -> set[str]:
        """Return those of *names* that are still ours, and stay so until the transaction ends.

        Shares a lock on their rows, which keeps others from taking them over meanwhile.
        """
        lease = self._lease
        epochs = [(name, self._held[name]) for name in names if name in self._held]
        if not epochs:
            return set()
        found = connection.execute(
            select(lease.c.name)
            .where(self._ours(), tuple_(lease.c.name, lease.c.epoch).in_(epochs))
            .order_by(lease.c.name)
            .with_for_update(read=True)
        )
        return set(found.scalars())

    def would_change(self, connection: Connection) -> bool:
        """Tell, by reading only, whether a :meth:`renew` now would bring or cost anything.

        A cheap look between the renewals that are due anyway, to notice soon that a member came
        or that something is free.
        """
        rows = self._select_all(connection)
        plan = self._plan(rows, self._clock.monotonic())
        shared = [rows[name] for name in self._names if name in rows]
        mine = {row.name: row.epoch for row in shared if row.owner == self._owner}
        return bool(plan.release or plan.take) or mine != self._held

    # --- changing it -----------------------------------------------------------------------------

    def ensure(self) -> None:
        """Add the rows that are missing. Idempotent."""
        with self._store.transaction() as connection:
            ensure_leases(connection, self._store, self._kind, self._names)

    def renew(self) -> Held:
        """Extend what is held, give up what is more than a fair share, take what is free.

        One short transaction. On a database error, which passes through, what is held stays as it
        was, and :attr:`until` too. Emits :class:`LeaseMoved` for each change.
        """
        started = self._clock.monotonic()
        # The limit frees the rows of a process that is stopped in the middle of this.
        with self._store.transaction(idle_timeout=max(1.0, self._duration / 3)) as connection:
            rows = self._read(connection)
            plan = self._plan(rows, started)
            self._write(connection, plan)
            self._attend(connection, rows)
            held = self._read_held(connection)
        self._until = started + self._duration * _SAFE_PART
        self._share = plan.share
        return self._become(held)

    def release(self, name: str) -> None:
        """Give up one of what is held; the next :meth:`renew` may take it again."""
        with self._store.transaction() as connection:
            one = and_(self._ours(), self._lease.c.name == name)
            connection.execute(self._update(one, owner=None, expires_at=0))
        self._become({held: epoch for held, epoch in self._held.items() if held != name})

    def release_all(self) -> None:
        """Give everything up, so that others need not wait for the expiry. Idempotent."""
        lease = self._lease
        with self._store.transaction() as connection:
            connection.execute(self._update(self._ours(), owner=None, expires_at=0))
            connection.execute(
                delete(lease).where(lease.c.kind == self._kind, lease.c.name == self._member)
            )
        self._until = float("-inf")
        self._share = 0
        self._become({})

    # --- the steps of a renewal ------------------------------------------------------------------

    def _read(self, connection: Connection) -> dict[str, LeaseRow]:
        rows = self._select_all(connection)
        missing = [name for name in self._names if name not in rows]
        if missing:
            ensure_leases(connection, self._store, self._kind, missing)
            rows = self._select_all(connection)
        return rows

    def _select_all(self, connection: Connection) -> dict[str, LeaseRow]:
        lease, now = self._lease, self._store.now()
        forgotten = now - duration_micros(self._duration * _FORGOTTEN_AFTER)
        columns = (
            lease.c.name,
            lease.c.owner,
            lease.c.epoch,
            lease.c.renewals,
            or_(lease.c.owner.is_(None), lease.c.expires_at <= now),
            lease.c.expires_at <= forgotten,
        )
        found = connection.execute(select(*columns).where(lease.c.kind == self._kind))
        return {
            name: LeaseRow(name, owner, epoch, renewals, bool(free), bool(forgotten))
            for name, owner, epoch, renewals, free, forgotten in found
        }

    def _plan(self, rows: Mapping[str, LeaseRow], now: float) -> Plan:
        stalled = self._stalled(rows.values(), now)
        free = {name for name, row in rows.items() if row.free or name in stalled}
        members = {name for name in rows if name.startswith(MEMBER)} - free
        others = {name.removeprefix(MEMBER) for name in members}
        shared = [rows[name] for name in self._names if name in rows]
        return fair_plan(shared, owner=self._owner, others=others, free=free)

    def _stalled(self, rows: Iterable[LeaseRow], now: float) -> set[str]:
        """Remember each row's mark; return the names whose mark is older than it may get."""
        marks: dict[str, tuple[tuple[str, int, int], float]] = {}
        for row in rows:
            known = self._marks.get(row.name)
            marks[row.name] = known if known and known[0] == row.mark else (row.mark, now)
        self._marks = marks
        oldest = now - self._duration * _STALLED_AFTER
        return {name for name, (_, since) in marks.items() if since <= oldest}

    def _write(self, connection: Connection, plan: Plan) -> None:
        if plan.keep:
            kept = and_(self._ours(), self._lease.c.name.in_(plan.keep))
            connection.execute(self._extend(kept))
        if plan.release:
            released = and_(self._ours(), self._lease.c.name.in_(plan.release))
            connection.execute(self._update(released, owner=None, expires_at=0))
        if plan.take:
            self._take(connection, plan.take)

    def _take(self, connection: Connection, wanted: Sequence[LeaseRow]) -> None:
        # Of two candidates that read the same row the second finds its mark changed, or the row
        # locked; waiting for that lock could only end in a deadlock or in a lost race.
        lease = self._lease
        marks = tuple_(lease.c.name, lease.c.epoch, lease.c.renewals)
        still = connection.execute(
            select(lease.c.name)
            .where(lease.c.kind == self._kind, marks.in_([row.mark for row in wanted]))
            .order_by(lease.c.name)
            .with_for_update(skip_locked=self._store.dialect.skip_locked)
        )
        if names := list(still.scalars()):
            taken = and_(lease.c.kind == self._kind, lease.c.name.in_(names))
            connection.execute(
                self._extend(taken).values(owner=self._owner, epoch=lease.c.epoch + 1)
            )

    def _attend(self, connection: Connection, rows: Mapping[str, LeaseRow]) -> None:
        """Renew this member's row, or make it, and remove those of members long dead."""
        lease = self._lease
        if self._member not in rows:
            ensure_leases(connection, self._store, self._kind, [self._member])
        own = and_(lease.c.kind == self._kind, lease.c.name == self._member)
        connection.execute(self._extend(own).values(owner=self._owner))
        dead = [row.mark for row in rows.values() if row.forgotten and self._is_other(row.name)]
        if dead:
            marks = tuple_(lease.c.name, lease.c.epoch, lease.c.renewals)
            connection.execute(delete(lease).where(lease.c.kind == self._kind, marks.in_(dead)))

    def _read_held(self, connection: Connection) -> dict[str, int]:
        lease = self._lease
        found = connection.execute(select(lease.c.name, lease.c.epoch).where(self._ours()))
        held = {name: epoch for name, epoch in found if not name.startswith(MEMBER)}
        return {name: held[name] for name in self._names if name in held}

    def _become(self, held: Mapping[str, int]) -> Held:
        before, self._held = self._held, MappingProxyType(dict(held))
        gained = frozenset(n for n, epoch in held.items() if before.get(n) != epoch)
        lost = frozenset(n for n, epoch in before.items() if held.get(n) != epoch)
        for names, is_gain in ((lost, False), (gained, True)):
            for name in sorted(names):
                self._emit(LeaseMoved(self._kind, name, is_gain))
        return Held(self._held, gained, lost)

    # --- small parts -----------------------------------------------------------------------------

    @property
    def _lease(self) -> Table:
        return self._store.tables.lease

    @property
    def _member(self) -> str:
        return MEMBER + self._owner

    def _is_other(self, name: str) -> bool:
        return name.startswith(MEMBER) and name != self._member

    def _ours(self) -> ColumnElement[bool]:
        return and_(self._lease.c.kind == self._kind, self._lease.c.owner == self._owner)

    def _update(self, where: ColumnElement[bool], **values: Any) -> Update:
        return update(self._lease).where(where).values(**values)

    def _extend(self, where: ColumnElement[bool]) -> Update:
        expires = self._store.now() + literal(duration_micros(self._duration))
        renewals = self._lease.c.renewals + 1
        return self._update(where, renewals=renewals, expires_at=expires)

    def _emit(self, event: LeaseMoved) -> None:
        if self._events is not None:
            self._events.emit(event)
