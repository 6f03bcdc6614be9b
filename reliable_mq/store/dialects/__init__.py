"""The databases a store can live in."""

from __future__ import annotations

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.dialects.base import Claimed, StoreDialect, Trouble
from reliable_mq.store.dialects.mysql import MySQL
from reliable_mq.store.dialects.postgresql import PostgreSQL
from reliable_mq.store.dialects.sqlite import SQLite

__all__ = ["Claimed", "StoreDialect", "Trouble", "dialect_of"]

_DIALECTS: dict[str, type[StoreDialect]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
    "sqlite": SQLite,
}


def dialect_of(name: str) -> StoreDialect:
    """Return the store dialect for SQLAlchemy's dialect *name*."""
    try:
        return _DIALECTS[name]()
    except KeyError:
        raise ConfigurationError(
            f"no store for the database {name!r}: use postgresql, mariadb, mysql or sqlite"
        ) from None
