"""Reading the outbox in the order in which its rows may be sent.

Every read begins at the beginning of each slot. A cursor ("after the last id that was seen")
would be quicker, and wrong: ids are drawn before transactions commit, so a row with a lower id
may appear later, and a row of its key that was committed after it must not be sent before it.
One statement sees one snapshot: whatever it shows of a key is in order, and complete from the
key's beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    Row,
    Select,
    SmallInteger,
    Table,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.selectable import TypedReturnsRows

from reliable_mq.message import Message
from reliable_mq.store.codec import unpack_headers
from reliable_mq.store.store import Store
from reliable_mq.store.tables import OUTBOX_SLOTS
from reliable_mq.store.times import from_micros

MAX_BYTES = 16 * 1024 * 1024
"""Bytes of bodies and headers that one read holds at most, or one message where it is larger."""

_NO_PLANNER_CHOICE = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', "
    "true), set_config('enable_sort', 'off', true), set_config('jit', 'off', true)"
)
"""A plan made (and, prepared, kept) while the outbox was empty would sort ten million rows."""

RowKey = tuple[str, bytes]
"""Topic and key: what is sent in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One row on its way out. ``message`` is None where the row cannot be read: see ``fault``.

    ``key`` is None for a message that has no order. ``created_at`` is by the database's clock,
    and ``read_at`` is what that clock said when the row was read.
    """

    id: int
    slot: int
    topic: str
    key: RowKey | None
    attempts: int
    created_at: int
    read_at: int
    message: Message | None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """What a read leaves out: whole topics, keys, and single rows that have no key."""

    topics: Collection[str] = ()
    keys: Collection[RowKey] = ()
    rows: Collection[int] = ()

    def __bool__(self) -> bool:
        return bool(self.topics or self.keys or self.rows)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of :func:`not_excluded`."""
        return {
            "topics": list(self.topics),
            "keys": list(self.keys),
            "rows": list(self.rows),
        }


class Reader:
    """Reads a few thousand rows at a time, shared fairly among the slots.

    Used by one thread at a time. Memory is bounded by *rows* and :data:`MAX_BYTES`, whatever
    waits in the outbox.
    """

    def __init__(self, store: Store, *, rows: int) -> None:
        self._store = store
        self._outbox = store.tables.outbox
        self._rows = rows
        self._inline = MAX_BYTES // max(rows, OUTBOX_SLOTS)
        self._slots: tuple[int, ...] = ()
        self._quotas: dict[int, int] = {}
        self._statements: dict[bool, TypedReturnsRows[Any]] = {}

    def read(self, slots: Iterable[int], excluded: Excluded) -> list[Outgoing]:
        """Return the first rows of *slots* that may be sent, in the order of their ids.

        Left out are rows behind a held one of their key and what is *excluded*. A key's rows are
        complete up to the last one returned, as far as transactions had committed.
        """
        self._set_slots(tuple(sorted(slots)))
        if not self._slots:
            return []
        with self._store.engine.connect() as connection:
            if self._store.dialect.name == "postgresql":
                connection.execute(_NO_PLANNER_CHOICE)
            found = list(connection.execute(self._statement(bool(excluded)), self._with(excluded)))
            found.sort(key=lambda row: int(row.id))
            self._share(Counter(int(row.slot) for row in found))
            return self._complete(connection, found[: self._rows])

    # --- shares ----------------------------------------------------------------------------------

    def _set_slots(self, slots: tuple[int, ...]) -> None:
        if slots != self._slots:
            self._slots = slots
            self._statements = {}
            self._quotas = fair_quotas(slots, {}, {}, self._rows)

    def _share(self, found: Mapping[int, int]) -> None:
        self._quotas = fair_quotas(self._slots, self._quotas, found, self._rows)

    def _with(self, excluded: Excluded) -> dict[str, Any]:
        shares = self._share_parameters()
        return {**shares, **excluded.parameters()} if excluded else shares

    def _share_parameters(self) -> dict[str, Any]:
        if self._store.dialect.name == "postgresql":
            return {"slots": list(self._slots), "quotas": [self._quotas[s] for s in self._slots]}
        return {f"quota_{slot}": quota for slot, quota in self._quotas.items()}

    # --- the statement ---------------------------------------------------------------------------

    def _statement(self, excluding: bool) -> TypedReturnsRows[Any]:
        """Return the statement for the present slots: made once, for that is what takes long."""
        if excluding not in self._statements:
            make = self._lateral if self._store.dialect.name == "postgresql" else self._union
            self._statements[excluding] = make(excluding)
        return self._statements[excluding]

    def _lateral(self, excluding: bool) -> TypedReturnsRows[Any]:
        """For each slot a walk along the key's index, in one nested loop."""
        shares = (
            func.unnest(
                bindparam("slots", type_=ARRAY(SmallInteger)),
                bindparam("quotas", type_=ARRAY(Integer)),
            )
            .table_valued(Column("slot", SmallInteger), Column("quota", Integer), name="shares")
            .render_derived()
        )
        of_slot = self._of_slot(shares.c.slot, shares.c.quota, excluding).lateral("o")
        return select(of_slot).select_from(shares).join(of_slot, true())

    def _union(self, excluding: bool) -> TypedReturnsRows[Any]:
        """The same where the database has no lateral join."""
        branches = [
            self._of_slot(literal(slot), bindparam(f"quota_{slot}", type_=Integer), excluding)
            for slot in self._slots
        ]
        if self._store.dialect.name == "sqlite":
            # SQLite takes no LIMIT inside a UNION, but in a sub-query there.
            branches = [branch.subquery().select() for branch in branches]
        return union_all(*branches) if len(branches) > 1 else branches[0]

    def _of_slot(
        self, slot: ColumnElement[int], quota: ColumnElement[int], excluding: bool
    ) -> Select[Any]:
        outbox = self._outbox
        statement = select(*self._columns()).where(outbox.c.slot == slot, not_held(self._store))
        if excluding:
            statement = statement.where(*not_excluded(outbox))
        return statement.order_by(outbox.c.slot, outbox.c.id).limit(quota)

    def _columns(self) -> list[ColumnElement[Any]]:
        c = self._outbox.c
        size = self._bytes(c.body) + self._bytes(c.headers)
        small = size <= self._inline
        return [
            c.id,
            c.slot,
            raw_text(self._store, c.message_id),
            raw_text(self._store, c.topic),
            c.message_key,
            raw_text(self._store, c.content_type),
            c.message_time,
            c.created_at,
            c.attempts,
            self._store.now().label("read_at"),
            size.label("size"),
            case((small, c.body)).label("body"),
            case((small, c.headers)).label("headers"),
        ]

    def _bytes(self, blob: Column[Any]) -> ColumnElement[int]:
        # SQLite's octet_length is younger than the oldest version we run on.
        if self._store.dialect.name == "sqlite":
            return func.length(blob)
        return func.octet_length(blob)

    # --- the rows --------------------------------------------------------------------------------

    def _complete(self, connection: Connection, found: Sequence[Row[Any]]) -> list[Outgoing]:
        """Cut *found* where it would be too many bytes, and fetch the bodies that are large."""
        found = within_bytes(found, MAX_BYTES)
        large = self._fetch(connection, [int(row.id) for row in found if row.body is None])
        rows: list[Outgoing] = []
        vanished: set[RowKey | None] = set()
        for row in found:
            body, headers = large.get(row.id, (row.body, row.headers))
            if body is None:
                # Sent or held by another relay since; what follows it is that one's business.
                vanished.add(_row_key(row))
            elif (key := _row_key(row)) is None or key not in vanished:
                rows.append(_outgoing(row, key, bytes(body), bytes(headers)))
        return rows

    def _fetch(self, connection: Connection, ids: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
        if not ids:
            return {}
        c = self._outbox.c
        found = connection.execute(select(c.id, c.body, c.headers).where(c.id.in_(ids)))
        return {row.id: (row.body, row.headers) for row in found}


# --- conditions that the relay's read and the count of what is sendable share --------------------


def not_held(store: Store) -> ColumnElement[bool]:
    """Return the condition that no row of the same topic and key is held."""
    outbox, held = store.tables.outbox, store.tables.outbox_held
    return ~exists().where(
        held.c.topic == outbox.c.topic, held.c.message_key == outbox.c.message_key
    )


def not_excluded(outbox: Table) -> list[ColumnElement[bool]]:
    """Return the conditions whose parameters come from :meth:`Excluded.parameters`."""
    c = outbox.c
    keys: BindParameter[Any] = bindparam("keys", expanding=True)
    return [
        c.topic.not_in(bindparam("topics", expanding=True)),
        c.id.not_in(bindparam("rows", expanding=True, type_=BigInteger)),
        or_(c.message_key.is_(None), tuple_(c.topic, c.message_key).not_in(keys)),
    ]


def raw_text(store: Store, column: Column[Any]) -> ColumnElement[Any]:
    """Return *column* as its bytes: a row of broken text must not break reading the others."""
    if store.dialect.name == "postgresql":
        return column
    if store.dialect.name == "sqlite":
        return cast(column, LargeBinary).label(column.name)
    return type_coerce(column, LargeBinary).label(column.name)


# --- pure parts ----------------------------------------------------------------------------------


def fair_quotas(
    slots: Sequence[int], quotas: Mapping[int, int], found: Mapping[int, int], rows: int
) -> dict[int, int]:
    """Return how many rows of each slot to read next, about *rows* together.

    Slots that gave all they were asked for share what the others leave; those keep enough to
    show that they fill up.
    """
    full = [slot for slot in slots if quotas and found.get(slot, 0) >= quotas[slot]]
    if not full or len(full) == len(slots):
        return dict.fromkeys(slots, max(1, rows // max(1, len(slots))))
    least = max(1, rows // (4 * len(slots)))
    most = max(least, (rows - least * (len(slots) - len(full))) // len(full))
    quotas = dict.fromkeys(slots, least)
    return {**quotas, **dict.fromkeys(full, most)}


def within_bytes(found: Sequence[Row[Any]], limit: int) -> Sequence[Row[Any]]:
    """Return the first of *found* that together have *limit* bytes, one at least."""
    total = 0
    for count, row in enumerate(found):
        total += int(row.size)
        if total > limit:
            return found[: max(1, count)]
    return found


def _row_key(row: Row[Any]) -> RowKey | None:
    if row.message_key is None:
        return None
    return shown(row.topic), bytes(row.message_key)


def _outgoing(row: Row[Any], key: RowKey | None, body: bytes, headers: bytes) -> Outgoing:
    message: Message | None = None
    fault: str | None = None
    try:
        message = Message(
            id=_text(row.message_id),
            topic=_text(row.topic),
            key=None if row.message_key is None else bytes(row.message_key).decode(),
            body=body,
            headers=MappingProxyType(unpack_headers(headers)),
            content_type=None if row.content_type is None else _text(row.content_type),
            time=from_micros(row.message_time),
        )
    except Exception as error:  # noqa: BLE001 - whatever is in there must not stop the others
        fault = f"the row cannot be read: {type(error).__name__}"
    return Outgoing(
        id=int(row.id),
        slot=int(row.slot),
        topic=shown(row.topic),
        key=key,
        attempts=_number(row.attempts),
        created_at=_number(row.created_at),
        read_at=int(row.read_at),
        message=message,
        fault=fault,
    )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


def _number(value: Any) -> int:
    # SQLite keeps any text in a column of integers.
    return value if isinstance(value, int) else 0


def shown(value: str | bytes) -> str:
    """Return what :func:`raw_text` brought as text for people, whatever the bytes are."""
    return value if isinstance(value, str) else bytes(value).decode(errors="replace")
