"""Somebody else in the database: locks rows in an order of his own, and so provokes deadlocks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, create_engine, select, text, update
from sqlalchemy.exc import DBAPIError

from reliable_mq import ReliableMQ
from tests.nemesis.application import ACCOUNTS, account

ROWS = 10
AT_ONCE = 3
_IMPATIENT = {
    "postgresql": "SET LOCAL lock_timeout = '2s'",
    "mysql": "SET SESSION innodb_lock_wait_timeout = 2",
}


class Rival:
    """Writes to a database for a while. Of his transactions, ``refused`` had to give way."""

    def __init__(self, url: str, mq: ReliableMQ, rng: random.Random) -> None:
        self._engine: Engine = create_engine(url)
        self._rng = rng
        tables = mq.store.tables
        self._tables: tuple[Table, ...] = (tables.inbox, tables.retry, tables.outbox)
        self._lock = threading.Lock()
        self.locked = 0
        self.refused = 0

    def harass(self, seconds: float, over: threading.Event) -> None:
        """Take locks, hold them, take more, let go: again and again, in several transactions."""
        on_file = self._engine.dialect.name == "sqlite"
        attack = self._hold_file if on_file else self._hold_rows
        deadline = time.monotonic() + seconds

        def work() -> None:
            while time.monotonic() < deadline and not over.wait(0.1):
                self._once(attack)

        threads = [threading.Thread(target=work) for _ in range(1 if on_file else AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def _once(self, attack: Callable[[Connection], None]) -> None:
        try:
            with self._engine.connect() as connection:
                attack(connection)
                connection.rollback()
            done = True
        except DBAPIError:  # a deadlock, or the server was killed meanwhile
            done = False
        with self._lock:
            self.locked += done
            self.refused += not done

    def _hold_file(self, connection: Connection) -> None:
        connection.execute(text("BEGIN IMMEDIATE"))
        time.sleep(self._rng.uniform(0.1, 0.6))

    def _hold_rows(self, connection: Connection) -> None:
        """Lock what handlers change, or rows of the library's own tables, from the far end."""
        connection.execute(text(_IMPATIENT[self._engine.dialect.name]))
        if self._rng.random() < 0.6:
            for number in self._rng.sample(range(1, ACCOUNTS + 1), 3):
                mine = account.c.id == number
                connection.execute(update(account).where(mine).values(handled=account.c.handled))
                time.sleep(self._rng.uniform(0.02, 0.1))
            return
        for table in self._rng.sample(self._tables, 2):
            connection.execute(_far_end(table)).all()
            time.sleep(self._rng.uniform(0.05, 0.3))


def _far_end(table: Table) -> Select[Any]:
    keys = table.primary_key.columns
    last = [column.desc() for column in keys]
    return select(*keys).order_by(*last).limit(ROWS).with_for_update()
