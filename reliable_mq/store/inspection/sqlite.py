"""What an SQLite connection is set to that would break a promise."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from sqlalchemy import Connection, delete, false, text
from sqlalchemy.exc import DBAPIError

from reliable_mq.adapter import Finding, Severity
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.inspection.checks import Check, Expected
from reliable_mq.store.store import Store
from reliable_mq.store.texts import cause_of
from reliable_mq.store.urls import is_memory

_OLDEST = (3, 35)
_SHORTEST_WAIT = 1000
_LEVELS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}


def _pragma(connection: Connection, name: str) -> str:
    return str(connection.execute(text(f"PRAGMA {name}")).scalar_one()).lower()


def _version(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    if sqlite3.sqlite_version_info < _OLDEST:
        yield Finding(
            code="sqlite-version",
            severity=Severity.ERROR,
            subject="SQLite",
            what=f"its version is {sqlite3.sqlite_version}",
            why="the statements of the library need RETURNING, of version 3.35",
            remedy="use a Python that comes with a newer SQLite",
        )


def _journal(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    mode = _pragma(connection, "journal_mode")
    if mode in {"off", "memory"}:
        yield Finding(
            code="sqlite-journal-mode",
            severity=Severity.ERROR,
            subject="SQLite journal_mode",
            what=f"journal_mode is {mode}",
            why="a crash in the middle of a transaction can destroy the file",
            remedy="PRAGMA journal_mode = WAL",
        )
    elif mode != "wal":
        yield Finding(
            code="sqlite-journal-mode",
            severity=Severity.INFO,
            subject="SQLite journal_mode",
            what=f"journal_mode is {mode}",
            why="those who read and those who write wait for each other; nothing is lost",
            remedy="PRAGMA journal_mode = WAL, where the file system can do it",
        )


def _synchronous(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    level = int(_pragma(connection, "synchronous"))
    if level >= 2:
        return
    yield Finding(
        code="sqlite-synchronous",
        severity=Severity.WARNING if level else Severity.ERROR,
        subject="SQLite synchronous",
        what=f"synchronous is {_LEVELS[level]}",
        why="after a power failure messages that were confirmed can be gone"
        if level
        else "after a power failure the file can be destroyed",
        remedy="PRAGMA synchronous = FULL on each connection",
    )


def _sharing(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    if _pragma(connection, "locking_mode") == "exclusive":
        yield Finding(
            code="sqlite-locking-mode",
            severity=Severity.ERROR,
            subject="SQLite locking_mode",
            what="locking_mode is exclusive",
            why="the first connection locks all others out: relay and handlers stand still",
            remedy="PRAGMA locking_mode = NORMAL on each connection",
        )
    wait = int(_pragma(connection, "busy_timeout"))
    if wait < _SHORTEST_WAIT:
        yield Finding(
            code="sqlite-busy-timeout",
            severity=Severity.WARNING,
            subject="SQLite busy_timeout",
            what=f"busy_timeout is {wait} ms",
            why="there is one writer at a time: your transactions and those of other processes "
            "fail with 'database is locked' instead of waiting for their turn",
            remedy="PRAGMA busy_timeout = 5000, or connect_args={'timeout': 5}",
        )


def _lock(connection: Connection, store: Store, expected: Expected) -> Iterator[Finding]:
    if is_memory(store.engine.url):
        return  # its one connection is this one
    try:
        with store.transaction() as ours:
            # BEGIN IMMEDIATE alone is content with a file that can only be read.
            ours.execute(delete(store.tables.version).where(false()))
    except DBAPIError as error:
        if store.dialect.classify(error) is Trouble.BUSY:
            yield _locked()
        elif not store.dialect.is_missing_table(error):
            yield _read_only(cause_of(error, 500))


def _locked() -> Finding:
    return Finding(
        code="old-transaction",
        severity=Severity.WARNING,
        subject="SQLite write lock",
        what="another process held the write lock all the time while this one waited for it",
        why="nobody else can publish or handle meanwhile; a process that was stopped in a "
        "transaction holds it for good",
        remedy="find the process (fuser names those that have the file open) and end it",
    )


def _read_only(cause: str) -> Finding:
    return Finding(
        code="database-read-only",
        severity=Severity.ERROR,
        subject="SQLite",
        what=f"no transaction can write: {cause}",
        why="nothing can be published, handled or acknowledged",
        remedy="let this user write the file and its directory",
    )


CHECKS = (
    Check(subject="SQLite", find=_version),
    Check(subject="SQLite journal_mode", find=_journal),
    Check(subject="SQLite synchronous", find=_synchronous),
    Check(subject="SQLite locking", find=_sharing),
    Check(subject="SQLite write lock", find=_lock),
)
