"""What PostgreSQL shows to any user of settings and sessions that would break a promise."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from reliable_mq.adapter import Finding, Severity
from reliable_mq.store.dialects.base import is_ours
from reliable_mq.store.inspection.checks import Check, Expected, Facts, Rule, broken
from reliable_mq.store.store import Store

_PRODUCT = "PostgreSQL"
_OLDEST = (12,)
_SHORTEST_STATEMENT = 10_000
"""Milliseconds: a claim waits for 2 s, and a settlement of a full batch may take its time."""

_LOST = "messages that were confirmed can be gone afterwards"
_DESTROYED = "after a crash of the machine the database can be destroyed"


def _is_off(value: str) -> bool:
    return value == "off"


_RULES = (
    Rule(
        setting="fsync",
        is_bad=_is_off,
        severity=Severity.ERROR,
        why=_DESTROYED,
        remedy="set fsync = on",
    ),
    Rule(
        setting="full_page_writes",
        is_bad=_is_off,
        severity=Severity.ERROR,
        why=_DESTROYED,
        remedy="set full_page_writes = on",
    ),
    Rule(
        setting="synchronous_commit",
        is_bad=_is_off,
        severity=Severity.ERROR,
        why=f"after a crash of the server {_LOST}",
        remedy="set synchronous_commit = on, for this role and database too",
    ),
    Rule(
        setting="autovacuum",
        is_bad=_is_off,
        severity=Severity.WARNING,
        why="each row of the outbox is deleted soon, and dead rows pile up at the place where "
        "the relay reads",
        remedy="set autovacuum = on",
    ),
    Rule(
        setting="statement_timeout",
        is_bad=lambda value: 0 < int(value) < _SHORTEST_STATEMENT,
        severity=Severity.WARNING,
        why="in milliseconds; a batch of the relay or a wait for a copy in flight ends as an "
        "error, and is repeated without end",
        remedy="set statement_timeout to 0 or to 10 s and more for this role",
    ),
    Rule(
        setting="default_transaction_isolation",
        is_bad=lambda value: value == "serializable",
        severity=Severity.INFO,
        why="your own transactions that publish may fail to serialize and then publish nothing; "
        "those of the library use READ COMMITTED",
        remedy="repeat your transactions that fail so",
    ),
)

# As this session has them: of the server, the database, the role, the URL or a hook.
_SETTINGS = text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)")
_READ = ("synchronous_standby_names", "max_connections", "superuser_reserved_connections")


def _facts(connection: Connection) -> Facts:
    names = [*(rule.setting for rule in _RULES), *_READ]
    found = connection.execute(_SETTINGS, {"names": names})
    return {name: value for name, value in found}  # noqa: C416 - rows are not pairs to mypy


def _settings(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    facts = _facts(connection)
    yield from broken(_RULES, facts, _PRODUCT)
    yield from _copies(connection, facts)
    yield from _connections(connection, facts, expected)


def _version(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    version = connection.dialect.server_version_info or ()
    if version < _OLDEST:
        yield Finding(
            code="postgresql-version",
            severity=Severity.ERROR,
            subject=_PRODUCT,
            what=f"the server has version {'.'.join(map(str, version))}",
            why="the statements of the library need version 12",
            remedy="upgrade the server; 15 is what is tested",
        )


def _pooler(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    """Look whether the server's session is another one's; psycopg alone knows whose it is."""
    login = getattr(connection.connection.dbapi_connection, "info", None)
    number = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    if number == getattr(login, "backend_pid", number):
        return
    ours = is_ours(connection)
    yield Finding(
        code="postgresql-pooler",
        severity=Severity.WARNING if ours else Severity.INFO,
        subject=_PRODUCT,
        what="a pooler is between this process and the server",
        why="statements that the library's own engine has prepared are not found in another "
        "session, and others get sessions with its limits"
        if ours
        else "nobody is woken by a commit: what is new is found by looking",
        remedy="unless its pool_mode is session, give an engine of your own, as docs/stores.md "
        "has it"
        if ours
        else "connect past the pooler where that is too slow",
    )


def _encoding(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        yield Finding(
            code="postgresql-encoding",
            severity=Severity.WARNING,
            subject=f"{_PRODUCT} server_encoding",
            what=f"the database is encoded in {encoding}",
            why="a message id or a cause of a failure with other characters cannot be stored: "
            "the publish fails, or the dead letter",
            remedy="make a database with ENCODING 'UTF8' and move to it",
        )


def _copies(connection: Connection, facts: Facts) -> Iterator[Finding]:
    # The rows are visible to everybody, what is in them is not.
    count = connection.execute(text("SELECT count(*) FROM pg_stat_replication")).scalar_one()
    if count and not facts.get("synchronous_standby_names"):
        yield Finding(
            code="postgresql-asynchronous-replicas",
            severity=Severity.INFO,
            subject=f"{_PRODUCT} synchronous_standby_names",
            what=f"{count} replicas or receivers follow, and no commit waits for any of them",
            why=f"if one of them takes over, {_LOST}",
            remedy="name those that may take over in synchronous_standby_names",
        )


def _connections(connection: Connection, facts: Facts, expected: Expected) -> Iterator[Finding]:
    query = text(
        "SELECT rolconnlimit, datconnlimit FROM pg_roles, pg_database"
        " WHERE rolname = current_user AND datname = current_database()"
    )
    limits = [int(limit) for limit in connection.execute(query).one() if limit >= 0]
    server = int(facts["max_connections"]) - int(facts["superuser_reserved_connections"])
    allowed = min([server, *limits])
    if allowed < expected.connections:
        yield Finding(
            code="postgresql-connections",
            severity=Severity.WARNING,
            subject=f"{_PRODUCT} max_connections",
            what=f"{allowed} connections are allowed to this role, and one process of this "
            f"application may use {expected.connections}",
            why="handlers that get no connection fail, and the relay stops for that time",
            remedy="raise max_connections (or the limit of role or database), or lower the "
            "concurrency of the handlers",
        )


def _read_only(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    if connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one():
        reason, remedy = "is a replica", "name the primary in database_url"
    elif connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on":
        reason, remedy = "is read-only for this role", "set default_transaction_read_only = off"
    else:
        return
    yield Finding(
        code="database-read-only",
        severity=Severity.ERROR,
        subject=_PRODUCT,
        what=f"the database {reason}",
        why="nothing can be published, handled or acknowledged",
        remedy=remedy,
    )


def _isolation(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    connection.rollback()
    with store.transaction() as ours:
        level = ours.execute(text("SHOW transaction_isolation")).scalar_one()
    if level != "read committed":
        yield Finding(
            code="database-isolation",
            severity=Severity.ERROR,
            subject="isolation level",
            what=f"the library's own transactions run as {level}",
            why="relay and consumers have to see what others committed meanwhile: they would miss "
            "it, or fail over and over",
            remedy="leave the isolation level alone in hooks of the engine and in a pooler",
        )


# --- tables -------------------------------------------------------------------------------------

_KEPT = text(
    "SELECT c.relname, c.relpersistence, coalesce(array_to_string(c.reloptions, ','), '')"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind = 'r' AND c.relname = ANY(:names)"
    " AND n.nspname = coalesce(:schema, current_schema())"
)

# What draws the numbers of each table: identity or serial.
_NUMBERS = text(
    "SELECT t.relname, s.seqcache FROM pg_sequence s"
    " JOIN pg_depend d ON d.objid = s.seqrelid AND d.deptype IN ('a', 'i')"
    " JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace n ON n.oid = t.relnamespace"
    " WHERE t.relname = ANY(:names) AND n.nspname = coalesce(:schema, current_schema())"
)


def _tables(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    names = [table.name for table in store.tables.all()]
    parameters = {"names": names, "schema": store.tables.outbox.schema}
    for name, persistence, options in connection.execute(_KEPT, parameters):
        if persistence == "u":
            yield _unlogged(name)
        if "autovacuum_enabled=false" in options or "autovacuum_enabled=off" in options:
            yield _not_vacuumed(name)
    for name, cache in connection.execute(_NUMBERS, parameters):
        if cache > 1:
            yield _cached_numbers(name, cache)


def _unlogged(name: str) -> Finding:
    return Finding(
        code="table-not-durable",
        severity=Severity.ERROR,
        subject=f"table {name}",
        what="it is UNLOGGED",
        why="a crash of the server empties it, and no replica has it",
        remedy=f"ALTER TABLE {name} SET LOGGED",
    )


def _not_vacuumed(name: str) -> Finding:
    return Finding(
        code="table-not-vacuumed",
        severity=Severity.WARNING,
        subject=f"table {name}",
        what="autovacuum is switched off for it",
        why="its rows are deleted soon, and dead rows pile up and slow every read down",
        remedy=f"ALTER TABLE {name} RESET (autovacuum_enabled)",
    )


def _cached_numbers(name: str, cache: int) -> Finding:
    return Finding(
        code="table-numbers-cached",
        severity=Severity.ERROR,
        subject=f"table {name}",
        what=f"its sequence caches {cache} numbers for each session",
        why="a later message of a key may get a lower number than an earlier one: they are sent in "
        "the wrong order",
        remedy=f"ALTER SEQUENCE of table {name} CACHE 1",
    )


# --- transactions of others ---------------------------------------------------------------------

# A VACUUM, autovacuum's too, holds no rows back for the others: the server leaves it out.
_OLD = text(
    "SELECT pid, usename, application_name, state,"
    " extract(epoch FROM clock_timestamp() - xact_start)::bigint"
    " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)"
    " AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)"
    " AND clock_timestamp() - xact_start > make_interval(secs => :age) ORDER BY xact_start"
)

# The server's own workers, such as autovacuum's, are nobody's sessions.
_HIDDEN = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND query = '<insufficient privilege>' AND usesysid IS NOT NULL"
)

_PREPARED = text(
    "SELECT gid, owner, extract(epoch FROM clock_timestamp() - prepared)::bigint"
    " FROM pg_prepared_xacts WHERE database = current_database()"
    " AND clock_timestamp() - prepared > make_interval(secs => :age) ORDER BY prepared"
)

_HELD_BACK = (
    "rows that were deleted since then cannot be cleaned up: the relay reads past them and slows "
    "down, and the tables grow"
)


def _transactions(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    age = {"age": expected.old_transaction}
    for pid, user, application, state, seconds in connection.execute(_OLD, age):
        yield Finding(
            code="old-transaction",
            severity=Severity.WARNING,
            subject=f"{_PRODUCT} session {pid}",
            what=f"its transaction is {seconds} s old ({user}, {application or 'no name'}, "
            f"{state})",
            why=_HELD_BACK,
            remedy=f"end it, at worst by pg_terminate_backend({pid}); limit such transactions by "
            "idle_in_transaction_session_timeout",
        )
    for gid, owner, seconds in connection.execute(_PREPARED, age):
        yield Finding(
            code="old-transaction",
            severity=Severity.WARNING,
            subject=f"{_PRODUCT} prepared transaction {gid}",
            what=f"it is {seconds} s old ({owner})",
            why=_HELD_BACK,
            remedy="COMMIT PREPARED or ROLLBACK PREPARED it",
        )
    yield from _hidden(connection)


def _hidden(connection: Connection) -> Iterator[Finding]:
    count = connection.execute(_HIDDEN).scalar_one()
    if count:
        yield Finding(
            code="not-checked",
            severity=Severity.INFO,
            subject=f"{_PRODUCT} sessions",
            what=f"the age of the transactions in {count} sessions of other users is hidden",
            why="an old one would keep rows from being cleaned up",
            remedy="GRANT pg_read_all_stats to this user to have them checked",
        )


CHECKS = (
    Check(subject=_PRODUCT, find=_version),
    Check(subject=f"{_PRODUCT} settings", find=_settings),
    Check(subject=f"{_PRODUCT} server_encoding", find=_encoding),
    Check(subject=_PRODUCT, find=_pooler),
    Check(subject=_PRODUCT, find=_read_only),
    Check(subject=f"{_PRODUCT} tables", find=_tables),
    Check(subject=f"{_PRODUCT} sessions", find=_transactions),
)

WHEN_WRITABLE = (Check(subject="isolation level", find=_isolation),)
