"""What becomes of outbox rows once the broker answered: gone, tried again later, or held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    any_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from reliable_mq.crashpoints import crash_point
from reliable_mq.store.arrays import array, of_numbers
from reliable_mq.store.direct import Direct
from reliable_mq.store.leases import LeaseSet
from reliable_mq.store.outbox.outgoing import Outgoing, RowKey
from reliable_mq.store.outbox.reading import Excluded, not_excluded, not_held
from reliable_mq.store.store import Store
from reliable_mq.store.texts import clean
from reliable_mq.store.times import duration_micros
from reliable_mq.store.walking import walking_alone

MAX_CAUSE_BYTES = 1024

NO_ROUTE = "unroutable: "
NO_ROUTE_FOR_KEY = "unroutable for this key: "
UNCONFIRMED = "unconfirmed: "
"""How the stored causes of rows that wait begin; status counts and ``sendable`` read them."""

_NO_ROUTE_AT_ALL = "unroutable%"
_COUNTED = 1000
_WAITS_LISTED = 100


@dataclass(frozen=True, slots=True)
class Later:
    """A row to be tried again: why, and in how many seconds (None: with the next batch)."""

    row: Outgoing
    cause: str
    delay: float | None
    no_route: bool = False


@dataclass(frozen=True, slots=True)
class Unfit:
    """A row that was refused for good, and why."""

    row: Outgoing
    cause: str


def settle(store: Store, sent: Sequence[Outgoing], later: Sequence[Later]) -> None:
    """Delete what was *sent* and note why the others wait, in one short transaction.

    Needs no lease: a confirmed message is sent, whoever says so, and its row must go. Safe to
    repeat where the outcome of the commit is unknown.
    """
    ids = [row.id for row in sent]
    if not later and _delete_alone(store, ids):
        crash_point("relay.settled")
    elif sent or later:
        _write(store, ids, later)


def _write(store: Store, ids: Sequence[int], later: Sequence[Later]) -> None:
    with store.transaction() as connection:
        if ids:
            _delete(store, connection, ids)
        if later:
            _note(store, connection, later)
        if ids:
            crash_point("relay.deleted")
    if ids:
        crash_point("relay.settled")


def hold(store: Store, unfit: Sequence[Unfit], leases: LeaseSet) -> list[Unfit]:
    """Move refused rows out of the way, and return those that were moved.

    Only where the lease on the row's slot is ours until the commit: another relay that has it
    may be sending this very row, with success. A row that is gone was sent, or held, by another.
    Safe to repeat.
    """
    with store.transaction() as connection:
        ours = leases.confirm(connection, sorted({str(item.row.slot) for item in unfit}))
        wanted = [item for item in unfit if str(item.row.slot) in ours]
        present = _lock(store, connection, [item.row.id for item in wanted])
        moved = [item for item in wanted if item.row.id in present]
        for item in moved:
            _copy(store, connection, item)
        if moved:
            _delete(store, connection, [item.row.id for item in moved])
            crash_point("relay.held")
    return moved


def sendable(store: Store) -> int:
    """Return how many rows can be sent now, counting no further than a thousand.

    Whichever relay they belong to. Held rows, rows behind them, and what waits for a topic, a
    queue or a permission until its next try are not counted. Reads the whole outbox when there
    is nothing to count.
    """
    outbox = store.tables.outbox
    with store.reading() as connection:
        excluded = _waiting_for_routes(store, connection)
        found = select(outbox.c.id).where(not_held(store))
        if excluded:
            found = found.where(*not_excluded(outbox))
        rows = found.limit(_COUNTED).subquery()
        counted = select(func.count()).select_from(rows)
        parameters = excluded.parameters() if excluded else {}
        return int(connection.execute(counted, parameters).scalar_one())


def _waiting_for_routes(store: Store, connection: Connection) -> Excluded:
    c = store.tables.outbox.c
    whole_topic = c.cause.like(NO_ROUTE + "%")
    key = case((whole_topic, null()), else_=c.message_key)
    row = case((or_(whole_topic, c.message_key.is_not(None)), null()), else_=c.id)
    found = connection.execute(
        select(c.topic, key, row)
        .where(c.try_at > store.now(), c.cause.like(_NO_ROUTE_AT_ALL))
        .distinct()
        .limit(_WAITS_LISTED)
    )
    topics: set[str] = set()
    keys: set[RowKey] = set()
    rows: set[int] = set()
    for topic, message_key, row_id in found:
        if message_key is not None:
            keys.add((topic, bytes(message_key)))
        elif row_id is not None:
            rows.add(row_id)
        else:
            topics.add(topic)
    return Excluded(topics, keys, rows)


# --- statements ----------------------------------------------------------------------------------


def _delete_alone(store: Store, ids: Sequence[int]) -> bool:
    """Delete rows by one statement, one round trip of five; False where it has no connection.

    The usual case, and after publishing itself what a batch takes longest for.
    """
    if not ids:
        return False
    with walking_alone(store) as connection:
        if connection is None:
            return False
        # Nobody sees the middle of a statement that is a transaction.
        crash_point("relay.deleted")
        _deletion(store.tables.outbox).execute(connection, [{"ids": of_numbers(ids)}])
    return True


def _delete(store: Store, connection: Connection, ids: Sequence[int]) -> None:
    outbox = store.tables.outbox
    if store.dialect.name != "postgresql":
        connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))
        return
    # A plan that was prepared while the table was small must not scan it when it is not.
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    _deletion(outbox).execute(connection, [{"ids": of_numbers(ids)}])


@lru_cache(maxsize=16)
def _deletion(outbox: Table) -> Direct:
    """Return PostgreSQL's DELETE of many rows."""
    of_ids = outbox.c.id == any_(array("ids", BigInteger()))
    return Direct(delete(outbox).where(of_ids), ["ids"])


def _note(store: Store, connection: Connection, later: Iterable[Later]) -> None:
    c = store.tables.outbox.c
    statement = (
        update(store.tables.outbox)
        .where(c.id == bindparam("of_id"))
        .values(
            attempts=c.attempts + 1,
            cause=bindparam("of_cause"),
            # NULL, a row without a delay, makes the sum NULL.
            try_at=store.now() + bindparam("of_delay", type_=BigInteger),
        )
    )
    rows = [
        {
            "of_id": item.row.id,
            "of_cause": clean(item.cause, MAX_CAUSE_BYTES),
            "of_delay": None if item.delay is None else duration_micros(item.delay),
        }
        for item in later
    ]
    # In one order in all processes, so that two of them cannot wait for each other.
    connection.execute(statement, sorted(rows, key=lambda row: int(str(row["of_id"]))))


def _lock(store: Store, connection: Connection, ids: Sequence[int]) -> set[int]:
    c = store.tables.outbox.c
    if not ids:
        return set()
    found = select(c.id).where(c.id.in_(ids)).order_by(c.id).with_for_update()
    return set(connection.execute(found).scalars())


def _copy(store: Store, connection: Connection, item: Unfit) -> None:
    outbox, held = store.tables.outbox, store.tables.outbox_held
    changed: dict[str, ColumnElement[Any]] = {
        "attempts": outbox.c.attempts + 1,
        "cause": literal(clean(item.cause, MAX_CAUSE_BYTES), held.c.cause.type),
        "held_at": store.now(),
    }
    names = held.c.keys()
    values = [changed[name] if name in changed else outbox.c[name] for name in names]
    source = select(*values).where(outbox.c.id == item.row.id)
    connection.execute(insert(held).from_select(names, source))
