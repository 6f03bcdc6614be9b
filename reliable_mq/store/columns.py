"""Column types that mean the same on every database: names, bytes and times compare by bytes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    VARBINARY,
    BigInteger,
    Dialect,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine
from typing_extensions import override

MYSQL_FAMILY = ("mysql", "mariadb")


class _LongBlob(LargeBinary):
    """MySQL's own type, named as SQLAlchemy's compiler for it knows it.

    Its own classes are part of a package that takes as long to import as all of this library.
    """

    __visit_name__ = "LONGBLOB"


class _MediumText(Text):
    """The same of text."""

    __visit_name__ = "MEDIUMTEXT"
    charset = "utf8mb4"


def _on_mysql(base: TypeEngine[Any], other: TypeEngine[Any]) -> TypeEngine[Any]:
    for name in MYSQL_FAMILY:
        base = base.with_variant(other, name)
    return base


class Identifier(TypeDecorator[str]):
    """Text of at most *length* bytes of UTF-8 that equals only itself.

    The usual collations of MariaDB and MySQL equate ``abc`` with ``ABC`` and with ``abc ``: two
    messages would be one. There it is VARBINARY, elsewhere text compared by bytes.
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    @override
    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in MYSQL_FAMILY:
            return dialect.type_descriptor(VARBINARY(self.length))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(String(self.length, collation="C"))
        return dialect.type_descriptor(String(self.length))

    @override
    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        if value is not None and dialect.name in MYSQL_FAMILY:
            return value.encode()
        return value

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return value.decode() if isinstance(value, (bytes, bytearray)) else value


BIG = BigInteger().with_variant(Integer, "sqlite")
"""64-bit integer; on SQLite the type whose primary key is the row id."""

SMALL = SmallInteger()

TIME = BIG
"""Microseconds since 1970 in UTC, by the database's clock unless said otherwise."""

BODY = _on_mysql(LargeBinary(), _LongBlob())
HEADERS = _on_mysql(LargeBinary(), _LongBlob())
ERROR_TEXT = _on_mysql(Text(), _MediumText())


def short_bytes(length: int) -> TypeEngine[Any]:
    """Return the type of at most *length* bytes that can stand in an index."""
    return _on_mysql(LargeBinary(length), VARBINARY(length))
