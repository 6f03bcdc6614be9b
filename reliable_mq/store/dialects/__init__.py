"""The databases a store can live in."""

from __future__ import annotations

from importlib import import_module

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.dialects.base import Claimed, Room, StoreDialect, Trouble

__all__ = ["Claimed", "Room", "StoreDialect", "Trouble", "dialect_of"]

_DIALECTS = {
    "postgresql": "postgresql:PostgreSQL",
    "mysql": "mysql:MySQL",
    "mariadb": "mysql:MySQL",
    "sqlite": "sqlite:SQLite",
}


def dialect_of(name: str) -> StoreDialect:
    """Return the store dialect for SQLAlchemy's dialect *name*."""
    place = _DIALECTS.get(name)
    if place is None:
        raise ConfigurationError(
            f"no store for the database {name!r}: use postgresql, mariadb, mysql or sqlite"
        )
    # Imported when it is used: SQLAlchemy's own part of each takes as long as all of ours.
    module, _, kind = place.partition(":")
    found: StoreDialect = getattr(import_module(f"{__name__}.{module}"), kind)()
    return found
