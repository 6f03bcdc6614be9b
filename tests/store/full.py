"""A database that refuses a statement because there is no room left, by its own means."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

_MARIADB = ("mysql", "mariadb")
_TINY = "CREATE OR REPLACE TABLE tiny (n BIGINT) ENGINE = MEMORY"


def prepare(engine: Engine) -> None:
    """Make what :func:`overfill` needs; DDL, which no handler may do."""
    if engine.dialect.name in _MARIADB:
        with engine.begin() as connection:
            connection.execute(text("SET SESSION max_heap_table_size = 16384"))
            connection.execute(text(_TINY))


def overfill(connection: Connection) -> None:
    """Run a statement for which there is no room: raises the driver's own error for that."""
    match connection.dialect.name:
        case "postgresql":
            # Its one way to get there without a disk that is really full.
            connection.execute(text("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$"))
        case "mysql" | "mariadb":
            connection.execute(text("INSERT INTO tiny SELECT seq FROM seq_1_to_100000"))
        case "sqlite":
            # No fewer than there are; so there is no room for one more.
            connection.execute(text("PRAGMA max_page_count = 1"))
            try:
                connection.execute(text("CREATE TABLE big AS SELECT zeroblob(1000000)"))
            finally:
                connection.execute(text("PRAGMA max_page_count = 1073741823"))
        case name:
            raise AssertionError(f"no way to fill {name}")
