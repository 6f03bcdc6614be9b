"""The application's store, for adapters that keep their messages in it."""

from __future__ import annotations

from reliable_mq.store import Store


def open_store(database_url: str) -> Store:
    """Return the store of *database_url*, its tables created where they are missing."""
    store = Store(database_url=database_url)
    store.create()
    return store


def close_store(store: Store) -> None:
    """Close its connections."""
    store.dispose()
