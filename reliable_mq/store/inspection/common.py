"""Checks that are the same on every database: the tables, rights on them, the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlalchemy import Connection, Table, delete, false, insert, select, update
from sqlalchemy.exc import DBAPIError

from reliable_mq.adapter import Finding, Severity
from reliable_mq.errors import ConfigurationError
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.inspection.checks import Check, Expected
from reliable_mq.store.schema import differences
from reliable_mq.store.store import Store
from reliable_mq.store.version import check_adapter, check_schema_version, read_version

_CREATE = "run declare(), or reliable-mq schema create"


# --- tables -------------------------------------------------------------------------------------


def _tables(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    found = differences(connection, store.tables)
    if len(found) == len(store.tables.all()) and all("table " in one.text for one in found):
        yield Finding(
            code="tables-missing",
            severity=Severity.ERROR,
            subject="tables",
            what=f"none of the library's tables ({store.tables.outbox.name}, ...) is there",
            why="nothing can be published or handled",
            remedy=_CREATE,
        )
        return
    for text, is_index in found:
        yield Finding(
            code="index-missing" if is_index else "tables-incomplete",
            severity=Severity.WARNING if is_index else Severity.ERROR,
            subject="tables",
            what=text,
            why="what looks for rows by it reads the whole table"
            if is_index
            else "statements fail, or rows that must not repeat do",
            remedy=_CREATE,
        )
    if not any(store.tables.version.fullname in one.text for one in found):
        yield from _version(connection, store)


def _version(connection: Connection, store: Store) -> Iterator[Finding]:
    found = read_version(connection, store.tables.version)
    if found is None:
        yield Finding(
            code="tables-undeclared",
            severity=Severity.ERROR,
            subject="tables",
            what="the version row is missing",
            why="it says whose tables these are; nothing is published or handled without it",
            remedy=_CREATE,
        )
        return
    try:
        check_schema_version(found)
        check_adapter(found, store.adapter)
    except ConfigurationError as error:
        what, _, remedy = str(error).partition(": ")
        yield Finding(
            code="tables-foreign",
            severity=Severity.ERROR,
            subject="tables",
            what=what,
            why="this process is refused at its first publish or start",
            remedy=remedy,
        )


# --- rights -------------------------------------------------------------------------------------


def _rights(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    for table in _used(store, expected):
        lacking, cause = _refused(connection, store, table)
        if lacking:
            yield Finding(
                code="table-rights",
                severity=Severity.ERROR,
                subject=f"table {table.fullname}",
                what=f"this user may not {' or '.join(lacking)}: {cause}",
                why="a publish fails, or what is sent and handled is not recorded as such",
                remedy=f"GRANT {', '.join(word.upper() for word in lacking)} on the table to "
                "the application's user",
            )


def _used(store: Store, expected: Expected) -> list[Table]:
    tables = store.tables
    embedded = (tables.topic_log, tables.topic_partition, tables.topic_cursor)
    return [
        table
        for table in tables.all()
        if table is not tables.version and (expected.embedded or table not in embedded)
    ]


def _refused(connection: Connection, store: Store, table: Table) -> tuple[list[str], str]:
    """Try statements that touch no row; return what of them is refused, and the first reason."""
    columns = list(table.c)
    nothing = select(*columns).where(false())
    names = [column.name for column in columns]
    tries = {
        "select": nothing,
        "insert": insert(table).from_select(names, nothing, include_defaults=False),
        "update": update(table).values({columns[-1]: columns[-1]}).where(false()),
        "delete": delete(table).where(false()),
    }
    lacking: list[str] = []
    cause = ""
    for word, statement in tries.items():
        try:
            with connection.begin_nested():
                connection.execute(statement)
        except DBAPIError as error:
            if store.dialect.classify(error) is not Trouble.OTHER:
                raise  # it says nothing about rights
            lacking.append(word)
            cause = cause or str(error.orig)
    return lacking, cause


# --- clock --------------------------------------------------------------------------------------


def _clock(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    before = time.time()
    database = connection.execute(select(store.now())).scalar_one() / 1e6
    after = time.time()
    # Between the two, whenever the database read it.
    skew = database - before if database < before else max(0.0, database - after)
    if abs(skew) > expected.skew:
        yield Finding(
            code="clock-skew",
            severity=Severity.WARNING,
            subject="clock",
            what=f"the database's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'} "
            "of this machine's",
            why="leases and retries go by the database's clock, the time in a message and what a "
            "broker keeps by it by this machine's: times do not fit together, and a clock that is "
            "set back by that much delays every retry",
            remedy="let all machines follow the same time servers",
        )


CHECKS = (
    Check(subject="tables", find=_tables),
    Check(subject="clock", find=_clock),
)

WHEN_USABLE = (Check(subject="rights", find=_rights),)
