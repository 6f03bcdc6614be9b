"""Arrays of PostgreSQL that travel as text: drivers are slow at lists.

They look at each element. What travels so is asked for by every read of the outbox (its slots) and
by every batch (its messages).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Text, bindparam, cast
from sqlalchemy.sql.type_api import TypeEngine


def array(name: str, kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return the array of elements of *kind* whose text is the parameter *name*."""
    return cast(bindparam(name, type_=Text), ARRAY(kind))


def of_numbers(numbers: Iterable[int]) -> str:
    """Return an array of *numbers* as text."""
    return _array(map(str, numbers))


def of_texts(texts: Iterable[str]) -> str:
    """Return an array of *texts* as text, whatever is in them."""
    return _array('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)


def of_blobs(blobs: Iterable[bytes]) -> str:
    """Return an array of *blobs* as text."""
    return _array(f'"\\\\x{blob.hex()}"' for blob in blobs)


def _array(elements: Iterable[str]) -> str:
    return "{" + ",".join(elements) + "}"
