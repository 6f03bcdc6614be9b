"""Statements of :meth:`StoreDialect.claim`, built once per table and kind of row.

Building and compiling an INSERT costs several times what the database takes for it, and the
inbox sees one for each message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Table

from reliable_mq.store.dialects.base import Row

S = TypeVar("S")

Expressions = Mapping[str, ColumnElement[Any]]


class Statements(Generic[S]):
    """A cache of what *build* returns for a table and the columns that hold SQL expressions."""

    def __init__(self, build: Callable[..., S]) -> None:
        self._build = build
        self._made: WeakKeyDictionary[Table, dict[tuple[Any, ...], tuple[S, Any]]]
        self._made = WeakKeyDictionary()
        self._lock = Lock()

    def of(self, table: Table, row: Row, *others: Table) -> S:
        """Return what is built of *table*, the SQL expressions of *row*, and *others*."""
        expressions = {k: v for k, v in row.items() if isinstance(v, ColumnElement)}
        # By identity: comparing expressions with == makes another expression.
        key = (*((name, id(value)) for name, value in expressions.items()), *map(id, others))
        known = self._made.get(table, {}).get(key)
        if known is None:
            # What it was built of is kept beside it, so that nothing else gets the same id.
            known = (self._build(table, expressions, *others), (expressions, others))
            with self._lock:
                self._made.setdefault(table, {})[key] = known
        return known[0]


def parameters(row: Row) -> dict[str, Any]:
    """Return the values of *row* that are not SQL expressions."""
    return {k: v for k, v in row.items() if not isinstance(v, ColumnElement)}
