"""An outbox written by hand: the library's rows, inserted by Core or as mapped objects."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session, registry

from benchmarks.ours.publish import Works, compare, payload
from reliable_mq import ReliableMQ
from reliable_mq.store.codec import EMPTY
from reliable_mq.store.outbox.writing import OutboxRow
from reliable_mq.store.tables import OUTBOX_SLOTS, slot_of


class _Inserted(Works):
    def __init__(self, mq: ReliableMQ, topic: str) -> None:
        super().__init__(mq, topic)
        self._insert = mq.store.tables.outbox.insert().inline()
        self._mapped = type("Mapped", (), {})
        registry().map_imperatively(self._mapped, mq.store.tables.outbox)

    def _append(self, target: Connection | Session, n: int, messages: int) -> None:
        rows = [_row(self._topic, n) for _ in range(messages)]
        if isinstance(target, Connection):
            target.execute(self._insert, rows)
        else:
            target.add_all([self._mapped(**row) for row in rows])


def transactions(*, database_url: str, topic: str, count: int, style: str) -> dict[str, Any]:
    """Return seconds for *count* transactions of each kind, taken in turns."""
    return compare(_Inserted, database_url=database_url, topic=topic, count=count, style=style)


def _row(topic: str, n: int) -> OutboxRow:
    order = payload(n)
    key, message_id = order["customer"], str(uuid.uuid4())
    now = time.time_ns() // 1000
    return {
        "slot": slot_of(key, message_id, OUTBOX_SLOTS),
        "message_id": message_id,
        "topic": topic,
        "message_key": key.encode(),
        "body": json.dumps(order).encode(),
        "headers": EMPTY,
        "content_type": "application/json",
        "message_time": now,
        "created_at": now,
    }
