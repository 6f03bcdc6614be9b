"""Somebody else in the database: locks rows in an order of his own, and so provokes deadlocks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from reliable_mq import ReliableMQ
from tests.nemesis.application import account

ROWS = 10


class Rival:
    """Writes to a database for a while. ``refused`` counts who had to give way: he himself."""

    def __init__(self, url: str, mq: ReliableMQ, rng: random.Random) -> None:
        self._engine: Engine = create_engine(url)
        self._rng = rng
        tables = mq.store.tables
        self._tables: tuple[Table, ...] = (account, tables.inbox, tables.retry, tables.outbox)
        self.locked = 0
        self.refused = 0

    def harass(self, seconds: float, over: threading.Event) -> None:
        """Take locks, hold them, take more, let go: again and again."""
        attack = self._hold_file if self._engine.dialect.name == "sqlite" else self._hold_rows
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not over.is_set():
            self._once(attack)
            over.wait(0.1)

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def _once(self, attack: Callable[[Connection], None]) -> None:
        try:
            with self._engine.connect() as connection:
                attack(connection)
                connection.rollback()
            self.locked += 1
        except DBAPIError:  # a deadlock, or the server was killed meanwhile
            self.refused += 1

    def _hold_file(self, connection: Connection) -> None:
        connection.execute(text("BEGIN IMMEDIATE"))
        time.sleep(self._rng.uniform(0.1, 0.6))

    def _hold_rows(self, connection: Connection) -> None:
        for table in self._rng.sample(self._tables, 2):
            rows: Any = select(*table.primary_key.columns).limit(ROWS).with_for_update()
            for column in table.primary_key.columns:
                rows = rows.order_by(column.desc())
            connection.execute(rows).all()
            time.sleep(self._rng.uniform(0.05, 0.3))
