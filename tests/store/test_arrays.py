"""Arrays that travel to PostgreSQL as text arrive as they were."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import BigInteger, LargeBinary, String, create_engine, select
from sqlalchemy.sql.type_api import TypeEngine

from reliable_mq.store.arrays import array, of_blobs, of_numbers, of_texts

TEXTS = [
    "a",
    "",
    " ",
    "NULL",
    "null",
    "{}",
    "a,b",
    '"',
    "\\",
    '\\"',
    "'",
    "%s",
    ":x",
    "\n\t",
    "ü😀",
]


@pytest.mark.parametrize(
    ("given", "text", "kind"),
    [
        ([], of_numbers([]), BigInteger()),
        ([0, -1, 2**63 - 1, -(2**63)], of_numbers([0, -1, 2**63 - 1, -(2**63)]), BigInteger()),
        ([], of_texts([]), String()),
        (TEXTS, of_texts(TEXTS), String()),
        ([b"", b"\0", bytes(range(256))], of_blobs([b"", b"\0", bytes(range(256))]), LargeBinary()),
    ],
    ids=["no numbers", "numbers", "no texts", "texts", "blobs"],
)
def test_every_element_arrives_as_it_was(
    postgresql_url: str, given: list[Any], text: str, kind: TypeEngine[Any]
) -> None:
    engine = create_engine(postgresql_url)
    try:
        with engine.connect() as connection:
            (found,) = connection.execute(select(array("given", kind)), {"given": text}).one()
    finally:
        engine.dispose()
    assert [bytes(one) if isinstance(one, memoryview) else one for one in found] == given
