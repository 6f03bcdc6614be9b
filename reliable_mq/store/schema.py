"""Creating the tables, comparing them with what exists, and their DDL as text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Table, UniqueConstraint, inspect
from sqlalchemy.schema import CreateIndex, CreateTable

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.tables import Tables

_Columns = tuple[str, ...]


class Difference(NamedTuple):
    """What the database lacks, for a person. Without a plain index it is slow, and right."""

    text: str
    is_index: bool = False


def create_missing(connection: Connection, tables: Tables) -> None:
    """Create the tables and indexes that are missing.

    Alters nothing that exists: a table without one of our columns is a ``ConfigurationError``.
    """
    existing = _Existing(connection, tables)
    present = [table for table in tables.all() if table.name in existing.columns]
    problems = [text for table in present for text in existing.missing_columns(table)]
    if problems:
        raise ConfigurationError(
            f"the database has tables of our names that are not ours: {'; '.join(problems)}. "
            "Use another table_prefix, or migrate them"
        )
    for table in tables.all():
        if table.name not in existing.columns:
            table.create(connection)
        for index in table.indexes:
            if table in present and index.name not in existing.index_names(table):
                index.create(connection)


def differences(connection: Connection, tables: Tables) -> list[Difference]:
    """Return each table, column, key and index that the database lacks."""
    existing = _Existing(connection, tables)
    found: list[Difference] = []
    for table in tables.all():
        if table.name not in existing.columns:
            found.append(Difference(f"table {table.fullname} is missing"))
        else:
            found.extend(Difference(text) for text in existing.missing_columns(table))
            found.extend(existing.missing_indexes(table))
    return found


def as_sql(tables: Tables, dialect: Dialect) -> str:
    """Return the statements that create everything, for a migration written by hand."""
    statements: list[str] = []
    for table in tables.all():
        statements.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        statements.extend(
            str(CreateIndex(index).compile(dialect=dialect)).strip()
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        )
    return "".join(f"{statement};\n\n" for statement in statements)


class _Existing:
    """What the database has of our names; read once each, for all tables together."""

    def __init__(self, connection: Connection, tables: Tables) -> None:
        self._inspector = inspect(connection)
        self._schema = tables.outbox.schema
        self._names = [table.name for table in tables.all()]

    @cached_property
    def columns(self) -> dict[str, set[str]]:
        """The columns by table."""
        found = self._inspector.get_multi_columns(schema=self._schema, filter_names=self._names)
        return {
            name: {column["name"] for column in columns} for (_, name), columns in found.items()
        }

    @cached_property
    def _indexes(self) -> dict[str, dict[str | None, tuple[_Columns, bool]]]:
        found = self._inspector.get_multi_indexes(schema=self._schema, filter_names=self._names)
        return {
            name: {i["name"]: (_present(i["column_names"]), bool(i["unique"])) for i in indexes}
            for (_, name), indexes in found.items()
        }

    @cached_property
    def _unique(self) -> dict[str, set[_Columns]]:
        options: dict[str, Any] = {"schema": self._schema, "filter_names": self._names}
        keys = self._inspector.get_multi_pk_constraint(**options)
        unique = {name: {_present(key["constrained_columns"])} for (_, name), key in keys.items()}
        constraints = self._inspector.get_multi_unique_constraints(**options)
        for (_, name), found in constraints.items():
            unique[name].update(_present(each["column_names"]) for each in found)
        for name, indexes in self._indexes.items():
            unique[name].update(columns for columns, is_unique in indexes.values() if is_unique)
        return unique

    def index_names(self, table: Table) -> set[str | None]:
        """Return the names of the table's indexes."""
        return set(self._indexes.get(table.name, ()))

    def missing_columns(self, table: Table) -> Iterator[str]:
        """Yield each of our columns that the table lacks."""
        for column in table.columns:
            if column.name not in self.columns[table.name]:
                yield f"column {table.fullname}.{column.name} is missing"

    def missing_indexes(self, table: Table) -> Iterator[Difference]:
        """Yield each of our keys and indexes that the table lacks, whatever their names."""
        unique = self._unique[table.name]
        indexed = unique | {columns for columns, _ in self._indexes.get(table.name, {}).values()}
        for what, columns, is_unique in _wanted(table):
            if columns not in (unique if is_unique else indexed):
                text = f"{what} on {table.fullname}({', '.join(columns)}) is missing"
                yield Difference(text, not is_unique)


def _wanted(table: Table) -> Iterator[tuple[str, _Columns, bool]]:
    yield "primary key", tuple(table.primary_key.columns.keys()), True
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield "unique constraint", tuple(constraint.columns.keys()), True
    for index in table.indexes:
        yield f"index {index.name}", tuple(index.columns.keys()), bool(index.unique)


def _present(columns: list[str] | list[str | None]) -> _Columns:
    return tuple(column for column in columns if column is not None)
