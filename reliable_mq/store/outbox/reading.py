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
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Select,
    SmallInteger,
    Table,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.sql.selectable import TypedReturnsRows

from reliable_mq.store.arrays import array, of_numbers
from reliable_mq.store.dialects.base import is_ours
from reliable_mq.store.direct import Direct
from reliable_mq.store.outbox.in_flight import NOTHING_IN_FLIGHT, InFlight
from reliable_mq.store.outbox.outgoing import Outgoing, RowKey, outgoing, raw_text, row_key
from reliable_mq.store.store import Store
from reliable_mq.store.tables import OUTBOX_SLOTS
from reliable_mq.store.walking import walking

MAX_BYTES = 8 * 1024 * 1024
"""Bytes of bodies and headers that one read holds at most, or one message where it is larger.

The relay holds what two reads brought, what it sends and what comes next, and beside that the last
batch that is being settled."""

_LEAST_OF_SLOT = 4
"""Rows asked of each slot where none has more; with fewer, short keys would take many reads."""

_ID, _SLOT, _KEY, _SIZE, _BODY, _HEADERS = 0, 1, 4, 9, 10, 11
"""Places of the columns that are read here."""

_NONE = -(2**62)
"""Below every id."""


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
        self._asked = max(rows, _LEAST_OF_SLOT * OUTBOX_SLOTS)
        self._slots: tuple[int, ...] = ()
        self._quotas: dict[int, int] = {}
        self.left_some = False
        """Whether more may be waiting than what the last read brought."""
        self._statements: dict[bool, TypedReturnsRows[Any]] = {}
        # Of its own, and of the present slots: compiled, a union of 64 takes megabytes, and the
        # engine would keep one for each share of the slots that there has been.
        self._compiled: dict[Any, Any] = {}
        # Every message goes through it, and one that nothing else delays waits for it.
        self._direct: Direct | None = None
        dialect = store.engine.dialect
        self._on_psycopg = (dialect.name, dialect.driver) == ("postgresql", "psycopg")

    def read(
        self,
        slots: Iterable[int],
        excluded: Excluded,
        in_flight: InFlight = NOTHING_IN_FLIGHT,
    ) -> list[Outgoing]:
        """Return the first rows of *slots* that may be sent, in the order of their ids.

        Left out are rows behind a held one of their key, what is *excluded*, and what is
        *in_flight*. A key's other rows are complete up to the last one returned, as far as
        transactions had committed.
        """
        self._set_slots(tuple(sorted(slots)))
        if not self._slots:
            return []
        with walking(self._store) as connection:
            found = self._found(connection, excluded, in_flight)
            found = [row for row in found if row[_ID] not in in_flight.ids]
            found.sort(key=itemgetter(_ID))
            complete = self._complete(connection, found[: self._rows])
        some_gave_all = self._share(Counter(map(itemgetter(_SLOT), found)))
        self.left_some = some_gave_all or len(complete) < len(found)
        return complete

    def _found(
        self, connection: Connection, excluded: Excluded, in_flight: InFlight
    ) -> Sequence[Sequence[Any]]:
        values = self._with(excluded, in_flight)
        # Past SQLAlchemy only where nothing is lost by that: not the hooks of an application, nor
        # what it makes of another driver's bytes.
        if not excluded and self._on_psycopg and is_ours(connection):
            if self._direct is None:
                self._direct = Direct(self._lateral(False), values)
            return self._direct.fetch_all(connection, values)
        self._store.dialect.read_in_bulk(connection)
        connection.execution_options(compiled_cache=self._compiled)
        return connection.execute(self._statement(bool(excluded)), values).all()

    # --- shares ----------------------------------------------------------------------------------

    def _set_slots(self, slots: tuple[int, ...]) -> None:
        if slots != self._slots:
            self._slots = slots
            self._statements = {}
            self._compiled = {}
            self._quotas = fair_quotas(slots, {}, {}, self._asked)

    def _share(self, found: Mapping[int, int]) -> bool:
        """Set the next quotas by what was *found*; tell whether a slot gave all it was asked."""
        some_gave_all = any(count >= self._quotas[slot] for slot, count in found.items())
        self._quotas = fair_quotas(self._slots, self._quotas, found, self._asked)
        return some_gave_all

    def _with(self, excluded: Excluded, in_flight: InFlight) -> dict[str, Any]:
        inline = MAX_BYTES // (self._asked + len(in_flight.ids))
        values = {"inline": inline, **self._share_parameters(in_flight)}
        return {**values, **excluded.parameters()} if excluded else values

    def _share_parameters(self, in_flight: InFlight) -> dict[str, Any]:
        if self._store.dialect.name == "sqlite":
            quota = self._rows + len(in_flight.ids)
            return {"slots": list(self._slots), "quota": quota, "after": _NONE}
        slots = self._slots
        quotas = [self._quotas[slot] + in_flight.counts.get(slot, 0) for slot in slots]
        after = [in_flight.last.get(slot, _NONE) for slot in slots]
        if self._store.dialect.name == "postgresql":
            return {
                "slots": of_numbers(slots),
                "quotas": of_numbers(quotas),
                "after": of_numbers(after),
            }
        return {
            name: value
            for slot, quota, last in zip(slots, quotas, after, strict=True)
            for name, value in ((f"quota_{slot}", quota), (f"after_{slot}", last))
        }

    # --- the statement ---------------------------------------------------------------------------

    def _statement(self, excluding: bool) -> TypedReturnsRows[Any]:
        """Return the statement for the present slots: made once, for that is what takes long."""
        if excluding not in self._statements:
            ways = {"postgresql": self._lateral, "sqlite": self._oldest}
            make = ways.get(self._store.dialect.name, self._union)
            self._statements[excluding] = make(excluding)
        return self._statements[excluding]

    def _lateral(self, excluding: bool) -> Select[Any]:
        """For each slot a walk along the key's index, in one nested loop."""
        shares = (
            func.unnest(
                array("slots", SmallInteger()),
                array("quotas", Integer()),
                array("after", BigInteger()),
            )
            .table_valued(
                Column("slot", SmallInteger),
                Column("quota", Integer),
                Column("after", BigInteger),
                name="shares",
            )
            .render_derived()
        )
        c = self._outbox.c
        # Not "=": of one slot the index of the ids would be in order too. Where few slots have
        # rows PostgreSQL takes that one, and walks through the whole outbox for each slot.
        is_slot = and_(c.slot >= shares.c.slot, c.slot <= shares.c.slot)
        share = (shares.c.quota, shares.c.after)
        of_slot = self._of_slot(is_slot, *share, excluding).lateral("o")
        return select(of_slot).select_from(shares).join(of_slot, true())

    def _union(self, excluding: bool) -> TypedReturnsRows[Any]:
        """The same where the database has no lateral join."""
        branches = [
            self._of_slot(
                self._outbox.c.slot == literal(slot),
                bindparam(f"quota_{slot}", type_=Integer),
                bindparam(f"after_{slot}", type_=BigInteger),
                excluding,
            )
            for slot in self._slots
        ]
        return union_all(*branches) if len(branches) > 1 else branches[0]

    def _oldest(self, excluding: bool) -> TypedReturnsRows[Any]:
        """The oldest of all slots, in the order of the table itself.

        For SQLite, where usually one process has all slots: a union of 64 takes it longer to
        compile than to run. The sum keeps it from an index by slots and a sort of everything.
        """
        outbox = self._outbox
        of_ours = (outbox.c.slot + 0).in_(bindparam("slots", expanding=True))
        after = bindparam("after", type_=BigInteger)
        statement = self._ready(after, excluding).where(of_ours)
        return statement.order_by(outbox.c.id).limit(bindparam("quota", type_=Integer))

    def _of_slot(
        self,
        is_slot: ColumnElement[bool],
        quota: ColumnElement[int],
        after: ColumnElement[int],
        excluding: bool,
    ) -> Select[Any]:
        outbox = self._outbox
        statement = self._ready(after, excluding).where(is_slot)
        return statement.order_by(outbox.c.slot, outbox.c.id).limit(quota)

    def _ready(self, after: ColumnElement[int], excluding: bool) -> Select[Any]:
        statement = select(*self._columns(after)).where(not_held(self._store))
        return statement.where(*not_excluded(self._outbox)) if excluding else statement

    def _columns(self, after: ColumnElement[int]) -> list[ColumnElement[Any]]:
        c = self._outbox.c
        size = self._bytes(c.body) + self._bytes(c.headers)
        # Up to the last in flight nearly all are in flight; of the others bodies are fetched.
        small = and_(size <= bindparam("inline", type_=Integer), c.id > after)
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

    def _complete(self, connection: Connection, found: Sequence[Sequence[Any]]) -> list[Outgoing]:
        """Cut *found* where it would be too many bytes, and fetch the bodies that are large."""
        found = within_bytes(found, MAX_BYTES)
        ids = [row[_ID] for row in found if row[_BODY] is None]
        if not ids:
            return [outgoing(row, row[_BODY], row[_HEADERS]) for row in found]
        large = self._fetch(connection, ids)
        # What vanished was sent or held by another relay; what follows it is that one's business.
        vanished = {row_key(row) for row in found if row[_BODY] is None and row[_ID] not in large}
        return [
            outgoing(row, *large.get(row[_ID], (row[_BODY], row[_HEADERS])))
            for row in found
            if not vanished or row[_KEY] is None or row_key(row) not in vanished
            if row[_BODY] is not None or row[_ID] in large
        ]

    def _fetch(self, connection: Connection, ids: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
        c, dialect = self._outbox.c, self._store.dialect
        dialect.read_in_bulk(connection)
        found = connection.execute(select(c.id, c.body, c.headers).where(dialect.among(c.id, ids)))
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


def within_bytes(found: Sequence[Sequence[Any]], limit: int) -> Sequence[Sequence[Any]]:
    """Return the first of *found* that together have *limit* bytes, one at least."""
    total = 0
    for count, row in enumerate(found):
        total += row[_SIZE]
        if total > limit:
            return found[: max(1, count)]
    return found
