"""What in the database's own settings would lose a committed message."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from reliable_mq.adapter import Finding, Severity

_LOST = "messages that were confirmed can be gone afterwards"


def findings(connection: Connection, max_body: int) -> list[Finding]:
    """Return the settings under which a commit is not durable, or a message does not fit.

    *max_body* is the largest body in bytes.
    """
    name = connection.dialect.name
    if name == "sqlite":
        return list(_sqlite(connection))
    if name == "postgresql":
        return list(_postgresql(connection))
    return [*_mysql(connection), *_packet(connection, max_body)]


def _sqlite(connection: Connection) -> Iterator[Finding]:
    level = connection.execute(text("PRAGMA synchronous")).scalar_one()
    journal = str(connection.execute(text("PRAGMA journal_mode")).scalar_one()).lower()
    if journal in {"off", "memory"}:
        yield Finding(
            severity=Severity.ERROR,
            subject="SQLite journal_mode",
            what=f"journal_mode is {journal}",
            why="a crash in the middle of a transaction can destroy the file",
            remedy="PRAGMA journal_mode = WAL",
        )
    if level == 0 or (level == 1 and journal == "wal"):
        yield Finding(
            severity=Severity.WARNING,
            subject="SQLite synchronous",
            what=f"synchronous is {'OFF' if level == 0 else 'NORMAL'}",
            why=f"after a power failure {_LOST}",
            remedy="PRAGMA synchronous = FULL on each connection",
        )


def _postgresql(connection: Connection) -> Iterator[Finding]:
    for name, consequence in (
        ("fsync", "after a crash of the machine the database can be destroyed"),
        ("full_page_writes", "after a crash of the machine the database can be destroyed"),
        ("synchronous_commit", f"after a crash of the server {_LOST}"),
    ):
        if connection.execute(text(f"SHOW {name}")).scalar_one() == "off":
            yield Finding(
                severity=Severity.ERROR,
                subject=f"PostgreSQL {name}",
                what=f"{name} is off",
                why=consequence,
                remedy=f"set {name} = on",
            )


def _mysql(connection: Connection) -> Iterator[Finding]:
    name = "innodb_flush_log_at_trx_commit"
    value = connection.execute(text(f"SELECT @@global.{name}")).scalar_one()
    if int(value) != 1:
        yield Finding(
            severity=Severity.ERROR if int(value) == 0 else Severity.WARNING,
            subject=f"MariaDB {name}",
            what=f"{name} is {value}",
            why=f"after a power failure {_LOST}",
            remedy=f"SET GLOBAL {name} = 1",
        )


def _packet(connection: Connection, max_body: int) -> Iterator[Finding]:
    limit = int(connection.execute(text("SELECT @@max_allowed_packet")).scalar_one())
    # The driver writes a byte of the body as up to two, and the rest of the row beside it.
    needed = 2 * max_body + 1_000_000
    if limit < needed:
        yield Finding(
            severity=Severity.ERROR,
            subject="MariaDB max_allowed_packet",
            what=f"max_allowed_packet is {limit} bytes, max_message_bytes is {max_body}",
            why="a large message ends the connection, and is tried again without end",
            remedy=f"SET GLOBAL max_allowed_packet = {needed}, or lower max_message_bytes",
        )
