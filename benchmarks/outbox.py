"""Outbox tables with rows in them, filled by the database itself from one prepared table."""

from __future__ import annotations

from typing import Any

from benchmarks.workload import CONTENT_TYPE, id_of, messages, slot_of

_TEMPLATE = """
CREATE TABLE {name} (n bigint PRIMARY KEY, slot smallint, message_id text, message_key bytea,
                       body bytea)
"""
_RAW = """
CREATE TABLE raw_outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                         message_id text NOT NULL, topic text NOT NULL, message_key bytea,
                         body bytea NOT NULL, content_type text)
"""
_RAW_FILL = f"""
INSERT INTO raw_outbox (message_id, topic, message_key, body, content_type)
SELECT message_id, %(topic)s, message_key, body, '{CONTENT_TYPE}'
FROM {{name}} WHERE n < %(count)s ORDER BY n
"""
_FILL = f"""
INSERT INTO reliable_mq_outbox (slot, message_id, topic, message_key, body, headers, content_type,
                                message_time, created_at)
SELECT slot, message_id, %(topic)s, message_key, body, '[]', '{CONTENT_TYPE}',
       1767225600000000, 1767225600000000
FROM {{name}} WHERE n < %(count)s ORDER BY n
"""

_FILL_TIMES = _FILL.replace(
    "FROM {name} WHERE n < %(count)s ORDER BY n",
    "FROM generate_series(1, %(times)s) AS time, {name} ORDER BY time, n",
)
_FASTSTREAM_FILL = """
INSERT INTO fso_outbox (queue, payload, headers)
SELECT 'orders', body, jsonb_build_object('content-type', 'application/octet-stream',
       'correlation_id', message_id, 'message-key', convert_from(message_key, 'UTF8'))
FROM {name} WHERE n < %(count)s ORDER BY n
"""


class Outboxes:
    """The prepared messages and what is made of them, on one PostgreSQL connection."""

    def __init__(self, connection: Any, count: int, keys: int, *, name: str = "template") -> None:
        self._connection = connection
        self._name = name
        self.keys = keys
        connection.execute(_TEMPLATE.format(name=name))
        with connection.cursor().copy(
            f"COPY {name} (n, slot, message_id, message_key, body) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int8", "int2", "text", "bytea", "bytea"])
            for n, key, body in messages(count, keys):
                copy.write_row((n, slot_of(key), id_of(n), key.encode(), body))
        connection.commit()

    def make_raw(self) -> None:
        """Create the table that the raw relay reads."""
        self._connection.execute(_RAW)
        self._connection.commit()

    def fill_raw(self, topic: str, count: int) -> None:
        """Put *count* messages into the raw relay's table, and nothing else."""
        self._fill("raw_outbox", _RAW_FILL, topic, count)

    def fill(self, topic: str, count: int) -> None:
        """Put *count* messages into the library's outbox, and nothing else."""
        self._fill("reliable_mq_outbox", _FILL, topic, count)

    def fill_at_once(self, topic: str, times: int = 1) -> None:
        """Put all messages into the library's outbox *times* times, while relays wait for them."""
        self._connection.execute(
            _FILL_TIMES.format(name=self._name), {"topic": topic, "times": times}
        )
        self._connection.commit()

    def empty(self) -> None:
        """Leave nothing in the library's outbox."""
        self._connection.execute("TRUNCATE reliable_mq_outbox")
        self._connection.commit()

    def fill_faststream(self, count: int) -> None:
        """Put *count* messages into the table of faststream-outbox, and nothing else."""
        self._fill("fso_outbox", _FASTSTREAM_FILL, "", count)

    def _fill(self, table: str, statement: str, topic: str, count: int) -> None:
        self._connection.execute(f"TRUNCATE {table}")
        self._connection.execute(
            statement.format(name=self._name), {"topic": topic, "count": count}
        )
        self._connection.commit()
        self._settle(table)

    def _settle(self, table: str) -> None:
        """Leave no work of the filling for the time that is measured."""
        self._connection.autocommit = True
        self._connection.execute(f"VACUUM ANALYZE {table}")
        self._connection.execute("CHECKPOINT")
        self._connection.autocommit = False

    def left(self, table: str) -> int:
        """Return how many rows are still there."""
        found = self._connection.execute(f"SELECT count(*) FROM {table}")
        count = int(found.fetchone()[0])
        self._connection.commit()
        return count
