"""Creating the tables, comparing them with what exists, and their DDL as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, Dialect, Table, UniqueConstraint, inspect
from sqlalchemy.engine.interfaces import ReflectedIndex, ReflectedUniqueConstraint
from sqlalchemy.schema import CreateIndex, CreateTable

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.tables import Tables


def create_missing(connection: Connection, tables: Tables) -> None:
    """Create the tables and indexes that are missing.

    Alters nothing that exists: a table without one of our columns is a ``ConfigurationError``.
    """
    present = _present(connection, tables)
    everything = tables.metadata.sorted_tables
    ours = [table for table in everything if table in _all(tables)]
    problems = [
        text for table in ours if table.name in present for text in _columns(connection, table)
    ]
    if problems:
        raise ConfigurationError(
            f"the database has tables of our names that are not ours: {'; '.join(problems)}. "
            "Use another table_prefix, or migrate them"
        )
    for table in ours:
        if table.name not in present:
            table.create(connection)
        else:
            _create_indexes(connection, table)


def differences(connection: Connection, tables: Tables) -> list[str]:
    """Return, for a person, each table, column and index that the database lacks."""
    present = _present(connection, tables)
    found: list[str] = []
    for table in _all(tables):
        if table.name not in present:
            found.append(f"table {table.fullname} is missing")
        else:
            found.extend(_columns(connection, table))
            found.extend(_indexes(connection, table))
    return found


def as_sql(tables: Tables, dialect: Dialect) -> str:
    """Return the statements that create everything, for a migration written by hand."""
    statements: list[str] = []
    for table in _all(tables):
        statements.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        statements.extend(
            str(CreateIndex(index).compile(dialect=dialect)).strip()
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        )
    return "".join(f"{statement};\n\n" for statement in statements)


def _all(tables: Tables) -> list[Table]:
    return [getattr(tables, name) for name in tables.__slots__]


def _present(connection: Connection, tables: Tables) -> set[str]:
    return set(inspect(connection).get_table_names(schema=tables.outbox.schema))


def _columns(connection: Connection, table: Table) -> Iterator[str]:
    there = {c["name"] for c in inspect(connection).get_columns(table.name, schema=table.schema)}
    for column in table.columns:
        if column.name not in there:
            yield f"column {table.fullname}.{column.name} is missing"


def _indexes(connection: Connection, table: Table) -> Iterator[str]:
    there = _indexed(connection, table)
    for name, columns, unique in _wanted(table):
        if (columns, True) not in there and (unique or (columns, False) not in there):
            kind = "unique index" if unique else "index"
            yield f"{kind} {name} on {table.fullname}({', '.join(columns)}) is missing"


def _wanted(table: Table) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    yield "(primary key)", tuple(table.primary_key.columns.keys()), True
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield "(unique constraint)", tuple(constraint.columns.keys()), True
    for index in table.indexes:
        yield str(index.name), tuple(index.columns.keys()), bool(index.unique)


def _indexed(connection: Connection, table: Table) -> set[tuple[tuple[str, ...], bool]]:
    look = inspect(connection)
    name, schema = table.name, table.schema
    key = look.get_pk_constraint(name, schema=schema)["constrained_columns"]
    there = {(tuple(key), True)}
    there.update((_names(c), True) for c in look.get_unique_constraints(name, schema=schema))
    there.update((_names(i), bool(i["unique"])) for i in look.get_indexes(name, schema=schema))
    return there


def _names(index: ReflectedIndex | ReflectedUniqueConstraint) -> tuple[str, ...]:
    columns: Iterable[str | None] = index["column_names"]
    return tuple(column for column in columns if column is not None)


def _create_indexes(connection: Connection, table: Table) -> None:
    there = {i["name"] for i in inspect(connection).get_indexes(table.name, schema=table.schema)}
    for index in table.indexes:
        if index.name not in there:
            index.create(connection)
