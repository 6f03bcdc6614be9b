"""The relay that everybody writes first: the oldest rows, publish, delete. PostgreSQL only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from benchmarks.child import Clock, go
from benchmarks.lab import dsn_of

BATCH = 500
_READ = """
SELECT id, message_id, message_key, body, content_type, topic FROM raw_outbox ORDER BY id LIMIT %s
"""

Row = tuple[int, str, bytes, bytes, str, str]


def drain(database_url: str, publish: Callable[[Sequence[Row]], None]) -> dict[str, Any]:
    """Publish and delete until nothing is left; *publish* returns once all is confirmed."""
    with psycopg.connect(dsn_of(database_url)) as connection:
        go()
        clock = Clock()
        sent = 0
        while rows := connection.execute(_READ, (BATCH,), prepare=True, binary=True).fetchall():
            connection.commit()
            publish(rows)
            gone = [row[0] for row in rows]
            connection.execute("DELETE FROM raw_outbox WHERE id = ANY(%s)", (gone,), prepare=True)
            connection.commit()
            sent += len(rows)
        return {"count": sent, **clock.read()}
