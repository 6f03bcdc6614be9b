"""What in a database's settings, tables and sessions would break the library's promises.

Works with the rights of the application. What those do not show is said as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError

from reliable_mq.adapter import Finding, Severity
from reliable_mq.store.direct import run
from reliable_mq.store.inspection import common, mysql, postgresql, sqlite
from reliable_mq.store.inspection.checks import Check, Expected, made
from reliable_mq.store.store import Store
from reliable_mq.store.texts import cause_of
from reliable_mq.store.urls import is_memory, sqlite_file

__all__ = ["Expected", "StoreReport", "inspect_store"]

_PATIENCE = 5
"""Seconds a check waits for a lock."""

_TABLES = {"tables-missing", "tables-incomplete"}
_UNUSABLE = _TABLES | {"database-read-only", "mariadb-binlog-format", "mysql-binlog-format"}
"""With these the further checks would only say the same again, statement by statement."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The findings. ``reachable`` the database is, ``complete`` are the library's tables in it."""

    findings: list[Finding]
    reachable: bool
    complete: bool


def inspect_store(store: Store, expected: Expected) -> StoreReport:
    """Look at the database of *store*; changes nothing.

    Blocks for the driver's own connection time-out where the database does not answer. Never
    raises for the database's sake: that is a finding.
    """
    missing = _missing_file(store)
    if missing is not None:
        return StoreReport([missing], reachable=False, complete=False)
    findings: list[Finding] = []
    try:
        for finding in _looked(store, expected):
            findings.append(finding)
    except DBAPIError as error:
        findings.append(_unreachable(store, error))
        return StoreReport(findings, reachable=False, complete=False)
    codes = {finding.code for finding in findings}
    return StoreReport(findings, reachable=True, complete=codes.isdisjoint(_TABLES))


def _looked(store: Store, expected: Expected) -> Iterator[Finding]:
    with store.engine.connect() as connection:
        checks = _begin(connection, store)
        seen: set[str] = set()
        for finding in made([*checks, *common.CHECKS], connection, store, expected):
            seen.add(finding.code)
            yield finding
        if seen.isdisjoint(_UNUSABLE):
            yield from made(_when_usable(store), connection, store, expected)


def _begin(connection: Connection, store: Store) -> Iterable[Check]:
    if store.dialect.name == "sqlite":
        return sqlite.CHECKS
    # Not to be used again: it gets limits of its own.
    connection.detach()
    if store.dialect.name == "postgresql":
        # For each transaction: behind a pooler the session is not ours either.
        event.listen(connection, "begin", _wait_briefly)
        return postgresql.CHECKS
    connection.execute(text(f"SET SESSION lock_wait_timeout = {_PATIENCE}"))
    return mysql.checks_of(product_of(connection))


def _wait_briefly(connection: Connection) -> None:
    run(connection, f"SET LOCAL lock_timeout = '{_PATIENCE}s'")


def _when_usable(store: Store) -> tuple[Check, ...]:
    if store.dialect.name == "sqlite":
        return ()  # who may write the file may do everything
    if store.dialect.name == "postgresql":
        return (*postgresql.WHEN_WRITABLE, *common.WHEN_USABLE)
    return common.WHEN_USABLE


def product_of(connection: Connection) -> str:
    """Return ``MariaDB`` or ``MySQL``."""
    return "MariaDB" if getattr(connection.dialect, "is_mariadb", False) else "MySQL"


def _missing_file(store: Store) -> Finding | None:
    url = store.engine.url
    if store.dialect.name != "sqlite" or is_memory(url) or Path(sqlite_file(url)).exists():
        return None
    return Finding(
        code="database-missing",
        severity=Severity.ERROR,
        subject=store.shown_url,
        what=f"there is no file {sqlite_file(url)}",
        why="nothing can be published or handled",
        remedy="name the right file in database_url (a relative path begins where the process was "
        "started), or let declare() make it",
    )


def _unreachable(store: Store, error: DBAPIError) -> Finding:
    return Finding(
        code="database-unreachable",
        severity=Severity.ERROR,
        subject=store.shown_url,
        what=f"no connection: {cause_of(error, 500)}",
        why="nothing can be published, handled or acknowledged; nothing else of it was checked",
        remedy="start the database, or mend address, user and password in database_url",
    )
