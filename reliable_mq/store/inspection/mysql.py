"""What MariaDB and MySQL show of settings that would break a promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from sqlalchemy import Connection, bindparam, text

from reliable_mq.adapter import Finding, Severity
from reliable_mq.store.inspection.checks import Check, Expected, Facts, Rule, broken
from reliable_mq.store.store import Store

_OLDEST = {True: (10, 6), False: (8, 0)}
"""The first version with SKIP LOCKED: of MariaDB, of MySQL."""

_LOST = "messages that were confirmed can be gone afterwards"
_SHORTEST_STATEMENT = 10.0
_STRICT = {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"}
_ROLLS_NOTHING_BACK = {"MyISAM", "Aria", "MEMORY", "CSV", "ARCHIVE", "BLACKHOLE"}


def _is_off(value: str) -> bool:
    return value.upper() in {"OFF", "0"}


# Of the server as a whole.
_GLOBAL_RULES = (
    Rule(
        setting="innodb_flush_log_at_trx_commit",
        is_bad=lambda value: value == "0",
        severity=Severity.ERROR,
        why=f"after a crash of the server {_LOST}",
        remedy="set innodb_flush_log_at_trx_commit = 1",
    ),
    Rule(
        setting="innodb_flush_log_at_trx_commit",
        is_bad=lambda value: value not in {"0", "1", "3"},
        severity=Severity.WARNING,
        why=f"after a power failure {_LOST}",
        remedy="set innodb_flush_log_at_trx_commit = 1",
    ),
    Rule(
        setting="innodb_flush_method",
        is_bad=lambda value: value.lower() == "nosync",
        severity=Severity.ERROR,
        why="after a crash of the machine the database can be destroyed",
        remedy="leave innodb_flush_method at its default",
    ),
    Rule(
        setting="innodb_doublewrite",
        is_bad=_is_off,
        severity=Severity.WARNING,
        why="a page that was half written at a crash of the machine is lost, unless the file "
        "system writes pages as a whole",
        remedy="set innodb_doublewrite = ON",
    ),
    Rule(
        setting="read_only",
        is_bad=lambda value: not _is_off(value),
        severity=Severity.ERROR,
        why="nothing can be published, handled or acknowledged: this is a replica, or a primary "
        "that was demoted",
        remedy="name the primary in database_url, or set read_only = OFF",
        code="database-read-only",
    ),
)

# Of a session of this user.
_RULES = (
    Rule(
        setting="sql_mode",
        is_bad=lambda value: _STRICT.isdisjoint(value.upper().split(",")),
        severity=Severity.WARNING,
        why="a value that does not fit is cut without an error, in your tables as in those of the "
        "library",
        remedy="add STRICT_TRANS_TABLES to sql_mode",
    ),
    Rule(
        setting="max_statement_time",
        is_bad=lambda value: 0 < float(value) < _SHORTEST_STATEMENT,
        severity=Severity.WARNING,
        why="in seconds; a batch of the relay or a wait for a copy in flight ends as an error, and "
        "is repeated without end",
        remedy="set max_statement_time to 0 or to 10 and more",
    ),
    Rule(
        setting="character_set_client",
        is_bad=lambda value: value != "utf8mb4",
        severity=Severity.WARNING,
        why="causes of failures with other characters are stored wrongly, or not at all",
        remedy="put charset=utf8mb4 into database_url, or leave charset out",
    ),
)

_READ = "sync_binlog", "log_bin", "binlog_format", "max_allowed_packet", "max_connections"
_READ_OF_SESSION = "wait_timeout", "max_user_connections"
_LEVELS = "tx_isolation", "transaction_isolation"


def _facts(connection: Connection, scope: str, names: tuple[str, ...]) -> Facts:
    listed = ", ".join(f"'{name}'" for name in names)
    shown = text(f"SHOW {scope} VARIABLES WHERE Variable_name IN ({listed})")
    return {str(name).lower(): str(value) for name, value in connection.execute(shown)}


def _settings(
    connection: Connection, store: Store, expected: Expected, *, product: str
) -> Iterator[Finding]:
    names = tuple(rule.setting for rule in _GLOBAL_RULES)
    facts = _facts(connection, "GLOBAL", (*names, *_READ, *_LEVELS))
    of_session = tuple(rule.setting for rule in _RULES)
    session = _facts(connection, "SESSION", (*of_session, *_READ_OF_SESSION))
    yield from broken(_GLOBAL_RULES, facts, product)
    yield from broken(_RULES, session, product)
    yield from _binary_log(facts, product)
    yield from _level(facts, product)
    yield from _packet(facts, expected, product)
    yield from _silence(session, expected, product)
    yield from _connections({**facts, **session}, expected, product)


def _binary_log(facts: Facts, product: str) -> Iterator[Finding]:
    if _is_off(facts.get("log_bin", "OFF")):
        return
    if facts.get("sync_binlog") != "1":
        yield Finding(
            code=f"{product.lower()}-sync-binlog",
            severity=Severity.WARNING,
            subject=f"{product} sync_binlog",
            what=f"sync_binlog is {facts.get('sync_binlog')}",
            why="after a power failure the replicas lack what the primary has, or have what it "
            f"lacks: when one takes over, {_LOST}",
            remedy="set sync_binlog = 1",
        )
    if facts.get("binlog_format", "").upper() == "STATEMENT":
        yield Finding(
            code=f"{product.lower()}-binlog-format",
            severity=Severity.ERROR,
            subject=f"{product} binlog_format",
            what="binlog_format is STATEMENT",
            why="the server refuses to write under READ COMMITTED, which the library uses: nothing "
            "is relayed or handled",
            remedy="set binlog_format to ROW or MIXED",
        )


def _level(facts: Facts, product: str) -> Iterator[Finding]:
    level = next((facts[name] for name in _LEVELS if name in facts), "")
    if level == "SERIALIZABLE":
        yield Finding(
            code=f"{product.lower()}-isolation",
            severity=Severity.INFO,
            subject=f"{product} tx_isolation",
            what="the server's isolation level is SERIALIZABLE",
            why="your own transactions lock what they read, and those that publish may end in a "
            "deadlock; those of the library use READ COMMITTED",
            remedy="use READ-COMMITTED or REPEATABLE-READ, or repeat your transactions that fail",
        )


def _packet(facts: Facts, expected: Expected, product: str) -> Iterator[Finding]:
    limit = int(facts["max_allowed_packet"])
    # The driver writes a byte of the body as up to two, and the rest of the row beside it.
    needed = 2 * expected.max_message_bytes + 1_000_000
    if limit < needed:
        yield Finding(
            code=f"{product.lower()}-max-allowed-packet",
            severity=Severity.ERROR,
            subject=f"{product} max_allowed_packet",
            what=f"max_allowed_packet is {limit} bytes, max_message_bytes is "
            f"{expected.max_message_bytes}",
            why="a large message cannot be published, waits for its next attempt in memory, and "
            "lacks its body as a dead letter",
            remedy=f"set max_allowed_packet to {needed} or more, or lower max_message_bytes",
        )


def _silence(session: Facts, expected: Expected, product: str) -> Iterator[Finding]:
    limit = float(session["wait_timeout"])
    if limit < expected.idle_in_transaction:
        yield Finding(
            code=f"{product.lower()}-wait-timeout",
            severity=Severity.WARNING,
            subject=f"{product} wait_timeout",
            what=f"wait_timeout is {limit:g} s, consumer.idle_in_transaction is "
            f"{expected.idle_in_transaction:g} s",
            why="a handler that is silent for longer loses its connection and its work, which "
            "counts as an attempt",
            remedy="set wait_timeout to more than consumer.idle_in_transaction, or lower that",
        )


def _connections(facts: Facts, expected: Expected, product: str) -> Iterator[Finding]:
    limits = [int(facts["max_connections"]), int(facts.get("max_user_connections", 0))]
    allowed = min(limit for limit in limits if limit > 0)
    if allowed < expected.connections:
        yield Finding(
            code=f"{product.lower()}-connections",
            severity=Severity.WARNING,
            subject=f"{product} max_connections",
            what=f"{allowed} connections are allowed to this user, and one process of this "
            f"application may use {expected.connections}",
            why="handlers that get no connection fail, and the relay stops for that time",
            remedy="raise max_connections (or the user's limit), or lower the concurrency of the "
            "handlers",
        )


def _version(
    connection: Connection, store: Store, expected: Expected, *, product: str
) -> Iterator[Finding]:
    version = tuple(
        part for part in connection.dialect.server_version_info or () if isinstance(part, int)
    )
    oldest = _OLDEST[product == "MariaDB"]
    if version < oldest:
        yield Finding(
            code=f"{product.lower()}-version",
            severity=Severity.ERROR,
            subject=product,
            what=f"the server has version {'.'.join(map(str, version))}",
            why="relays and consumers share their work by SKIP LOCKED, which it lacks",
            remedy=f"upgrade the server to {'.'.join(map(str, oldest))} or later",
        )


# --- tables and transactions --------------------------------------------------------------------

_ENGINES = text(
    "SELECT table_name, engine FROM information_schema.tables"
    " WHERE table_schema = coalesce(:schema, database()) AND table_name IN :names"
).bindparams(bindparam("names", expanding=True))


def _tables(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    names = [table.name for table in store.tables.all()]
    parameters = {"names": names, "schema": store.tables.outbox.schema}
    for name, engine in connection.execute(_ENGINES, parameters):
        if engine == "InnoDB":
            continue
        harmless = engine not in _ROLLS_NOTHING_BACK
        yield Finding(
            code="table-engine",
            severity=Severity.WARNING if harmless else Severity.ERROR,
            subject=f"table {name}",
            what=f"its engine is {engine}",
            why="the library was tested with InnoDB only"
            if harmless
            else "it knows no transactions: what is rolled back stays, and the message is not "
            "committed together with your data",
            remedy=f"ALTER TABLE {name} ENGINE = InnoDB",
        )


_OLD = text(
    "SELECT trx_mysql_thread_id, TIMESTAMPDIFF(SECOND, trx_started, NOW())"
    " FROM information_schema.innodb_trx WHERE trx_mysql_thread_id <> CONNECTION_ID()"
    " AND TIMESTAMPDIFF(MICROSECOND, trx_started, NOW(6)) > :age ORDER BY trx_started"
)


def _transactions(
    connection: Connection, store: Store, expected: Expected, *, product: str
) -> Iterator[Finding]:
    age = {"age": int(expected.old_transaction * 1e6)}
    for thread, seconds in connection.execute(_OLD, age):
        yield Finding(
            code="old-transaction",
            severity=Severity.WARNING,
            subject=f"{product} connection {thread}",
            what=f"its transaction is {seconds} s old",
            why="rows that were deleted since then cannot be cleaned up: the relay reads past them "
            "and slows down",
            remedy=f"end it, at worst by KILL {thread}",
        )


def checks_of(product: str) -> tuple[Check, ...]:
    """Return the checks for ``MariaDB`` or ``MySQL``."""
    return (
        Check(subject=product, find=partial(_version, product=product)),
        Check(subject=f"{product} settings", find=partial(_settings, product=product)),
        Check(subject=f"{product} tables", find=_tables),
        Check(
            subject=f"{product} transactions",
            find=partial(_transactions, product=product),
            needs="GRANT PROCESS ON *.* to this user to have old transactions found",
        ),
    )
