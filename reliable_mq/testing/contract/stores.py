"""The application's store, for adapters that keep their messages in it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, MetaData, create_engine

from reliable_mq.store.dialects import StoreDialect, dialect_of
from reliable_mq.store.tables import Tables, build_tables


@dataclass(frozen=True)
class ContractStore:
    """A database with the library's tables in it."""

    engine: Engine
    tables: Tables
    dialect: StoreDialect


def open_store(database_url: str) -> ContractStore:
    """Return the store of *database_url*, its tables created where they are missing."""
    engine = create_engine(database_url)
    tables = build_tables(MetaData(), dialect=engine.dialect.name, prefix="reliable_mq_")
    tables.metadata.create_all(engine)
    return ContractStore(engine, tables, dialect_of(engine.dialect.name))


def close_store(store: ContractStore) -> None:
    """Close its connections."""
    store.engine.dispose()
