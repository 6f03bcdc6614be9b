"""PostgreSQL, by psycopg 3 or asyncpg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    event,
    func,
    literal,
    literal_column,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import DBAPIError, InterfaceError
from typing_extensions import override

from reliable_mq.store.arrays import of_blobs, of_texts
from reliable_mq.store.dialects.base import (
    LASTING,
    Claimed,
    Room,
    Row,
    StoreDialect,
    Trouble,
    driver_error,
    is_ours,
)
from reliable_mq.store.dialects.claims import Statements, parameters
from reliable_mq.store.dialects.postgresql_claims import TIMES, claim, claim_one

if TYPE_CHECKING:
    from reliable_mq.store.tables import Tables

_BUSY = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
}
_IDLE = {"25P03", "25P04"}  # idle_in_transaction_session_timeout, transaction_timeout
_GONE = {"53300"}  # too_many_connections
_GONE_CLASSES = ("08", "57P")  # connection exceptions, operator intervention
_FULL = "53100"  # disk_full
_MISSING = {"42P01", "3F000"}  # undefined_table, invalid_schema_name

_SCHEMA_LOCK = 7307218391044825458  # any number, the same in every process
_IDLE_LIMIT = "idle_in_transaction_session_timeout"
_LIMIT = "reliable_mq_idle_limit"
_ROOM = Room(2**30 - 1, "PostgreSQL's largest row as text")

# now() is frozen at the transaction's begin.
_NOW: ColumnElement[int] = literal_column(
    "CAST(extract(epoch from clock_timestamp()) * 1000000 AS BIGINT)", BigInteger
)


class PostgreSQL(StoreDialect):
    """PostgreSQL 12 or later."""

    name = "postgresql"

    def __init__(self) -> None:
        self._claims = Statements(claim)
        self._single_claims = Statements(claim_one)

    @override
    def now(self) -> ColumnElement[int]:
        return _NOW

    @override
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        limit = None if idle_timeout is None else _milliseconds(idle_timeout)
        if not is_ours(connection):
            connection.execution_options(isolation_level="READ COMMITTED")
            connection.begin()
            if limit is not None:
                _set_local(connection, str(limit))
            return
        known = connection.info.get(_LIMIT)
        if known is None and limit is not None and limit >= LASTING * 1000:
            _set_for_good(connection, limit)
            known = limit
        connection.begin()
        if limit != known:
            _set_local(connection, "DEFAULT" if limit is None else str(limit))

    @override
    def begin_briefly(self, connection: Connection) -> None:
        if not is_ours(connection):
            self.begin(connection, idle_timeout=LASTING)
            return
        connection.begin()
        if connection.info.get(_LIMIT) is None:
            _set_local(connection, str(round(LASTING * 1000)))

    @override
    def begin_unlimited(self, connection: Connection, *, idle_timeout: float) -> None:
        if not is_ours(connection):
            connection.execution_options(isolation_level="READ COMMITTED")
        connection.begin()

    @override
    def idle_limit(self, seconds: float) -> ColumnElement[str]:
        # Written out: as parameters they would be two more of each statement that has it.
        name: ColumnElement[str] = literal_column(f"'{_IDLE_LIMIT}'", Text)
        limit: ColumnElement[str] = literal_column(f"'{_milliseconds(seconds)}'", Text)
        return func.set_config(name, limit, true())

    @override
    def join(self, connection: Connection) -> None:
        if connection.info.get(_LIMIT) is not None:
            _set_local(connection, "DEFAULT")

    @override
    def read_in_bulk(self, connection: Connection) -> None:
        # As text a body takes twice its size, and half of the time of a read.
        if connection.dialect.driver == "psycopg":
            event.listen(connection, "before_cursor_execute", _in_binary)

    @override
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        first = rows[0]
        values = {
            "lock_timeout": str(max(1, round(lock_timeout * 1000))),
            "consumer_group": first["consumer_group"],
            "topic": first["topic"],
            "ids": of_texts(row["message_id"] for row in rows),
            "fingerprints": of_blobs(row["fingerprint"] for row in rows),
            **{name: first[name] for name in TIMES if not isinstance(first[name], ColumnElement)},
        }
        new, _ = connection.execute(self._claims.of(inbox, first), values).one()
        return set(new or ())

    @override
    def claim_one(
        self,
        connection: Connection,
        tables: Tables,
        row: Row,
        *,
        key: bytes | None,
        lock_timeout: float,
    ) -> Claimed:
        values = parameters(row)
        values["lock_timeout"] = str(max(1, round(lock_timeout * 1000)))
        if key is None:
            statement = self._single_claims.of(tables.inbox, row)
        else:
            values["message_key"] = key
            statement = self._single_claims.of(tables.inbox, row, tables.retry)
        new, _, known, *waits = statement.fetch(connection, values)
        return Claimed(bool(new), waits[0] if waits else None, known)

    @override
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        return _sqlstate(error) == "55P03"

    @override
    def classify(self, error: BaseException, connection: Connection | None = None) -> Trouble:
        states = _sqlstates(error)
        state = states[0] if states else None
        if state in _BUSY:
            return Trouble.BUSY
        # asyncpg reports a lost connection, with the server's last word as its cause.
        if not _IDLE.isdisjoint(states):
            return Trouble.IDLE
        if state == _FULL:
            return Trouble.FULL
        if state is not None:
            lost = state in _GONE or state.startswith(_GONE_CLASSES)
            return Trouble.GONE if lost else Trouble.OTHER
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Trouble.GONE
        if isinstance(error, InterfaceError | OSError):
            return Trouble.GONE
        return _without_state(error)

    @override
    def room(self, connection: Connection) -> Room:
        return _ROOM

    @override
    def size_of(self, connection: Connection, value: bytes) -> int:
        # The server stores larger ones than it can show: as text they are hexadecimal.
        return 2 * len(value)

    @override
    def is_missing_table(self, error: DBAPIError) -> bool:
        return _sqlstate(error) in _MISSING

    @override
    @contextmanager
    def changing_schema(self, engine: Engine) -> Iterator[Connection]:
        # CREATE TABLE IF NOT EXISTS alone fails with a unique violation when two processes do it.
        with engine.connect() as connection:
            self.begin(connection)
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
            yield connection
            connection.commit()

    @override
    def among(self, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        # One parameter: a hundred of them cost the driver more than the whole query. Of bytes as
        # one text, for it would look at each.
        given: ColumnElement[Any]
        if values and isinstance(values[0], bytes):
            given = cast(literal(of_blobs(values), Text), ARRAY(column.type))
        else:
            given = bindparam(None, list(values), type_=ARRAY(column.type), unique=True)
        return column == any_(given)

    @override
    def insert_ignoring(self, table: Table) -> Insert:
        return insert(table).on_conflict_do_nothing()


def _in_binary(connection: Connection, cursor: Any, *_: object) -> None:
    if not isinstance(cursor, connection.dialect.loaded_dbapi.ClientCursor):  # It has text only.
        cursor.format = 1  # psycopg.pq.Format.BINARY


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))  # 0 would switch a limit off


def _set_local(connection: Connection, limit: str) -> None:
    connection.exec_driver_sql(f"SET LOCAL {_IDLE_LIMIT} = {limit}")


def _set_for_good(connection: Connection, limit: int) -> None:
    """Limit all later transactions of this pooled connection, which then need no statement."""
    connection.exec_driver_sql(f"SET {_IDLE_LIMIT} = {limit}")
    connection.commit()
    connection.info[_LIMIT] = limit


def _sqlstate(error: BaseException) -> str | None:
    return next(iter(_sqlstates(error)), None)


def _sqlstates(error: BaseException) -> list[str]:
    """Return the states of the driver's error and of its causes."""
    states: list[str] = []
    cause = driver_error(error)
    while cause is not None:
        # psycopg2, which an application's own engine may use, calls it pgcode.
        state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if isinstance(state, str):
            states.append(state)
        cause = cause.__cause__
    return states


def _without_state(error: BaseException) -> Trouble:
    # psycopg reports a connection closed by the server or the network as an OperationalError
    # without a state ("the connection is closed", "server closed the connection unexpectedly").
    if isinstance(error, DBAPIError) and type(error.orig).__name__ == "OperationalError":
        return Trouble.GONE
    return Trouble.OTHER
