"""The relay that everybody writes first: the oldest rows, publish, delete. PostgreSQL only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import psycopg

from benchmarks.child import Clock, go, report
from benchmarks.lab import dsn_of

BATCH = 500
_READ = """
SELECT id, message_id, message_key, body, content_type, topic FROM raw_outbox ORDER BY id LIMIT %s
"""

Row = tuple[int, str, bytes, bytes, str, str]


def serve(database_url: str, publish: Callable[[Sequence[Row]], None]) -> NoReturn:
    """Publish and delete whatever comes, woken by NOTIFY, until this process is ended."""
    with (
        psycopg.connect(dsn_of(database_url)) as connection,
        psycopg.connect(dsn_of(database_url), autocommit=True) as listener,
    ):
        listener.execute("LISTEN raw_outbox")
        go()
        report(event="running")
        while True:
            while rows := _read(connection):
                publish(rows)
                _delete(connection, rows)
            for _ in listener.notifies(timeout=1.0, stop_after=1):
                pass


def _read(connection: Any) -> list[Row]:
    rows: list[Row] = connection.execute(_READ, (BATCH,), prepare=True, binary=True).fetchall()
    connection.commit()
    return rows


def _delete(connection: Any, rows: Sequence[Row]) -> None:
    gone = [row[0] for row in rows]
    connection.execute("DELETE FROM raw_outbox WHERE id = ANY(%s)", (gone,), prepare=True)
    connection.commit()


def drain(database_url: str, publish: Callable[[Sequence[Row]], None]) -> dict[str, Any]:
    """Publish and delete until nothing is left; *publish* returns once all is confirmed."""
    with psycopg.connect(dsn_of(database_url)) as connection:
        go()
        clock = Clock()
        sent = 0
        while rows := _read(connection):
            publish(rows)
            _delete(connection, rows)
            sent += len(rows)
        return {"count": sent, **clock.read()}
