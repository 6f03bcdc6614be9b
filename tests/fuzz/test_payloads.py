"""Bodies, read as the payload of a handler: a value, or an error that is short and typed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from reliable_mq.errors import DecodeError
from reliable_mq.message import Message, body_decoder
from tests.fuzz.corpus import VALUES
from tests.fuzz.mutation import Mutator
from tests.fuzz.running import fuzz


class Line(BaseModel):
    item: str
    count: int


class Order(BaseModel):
    id: int
    customer: str = ""
    at: datetime | None = None
    price: Decimal | None = None
    lines: list[Line] = []


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class Cash(BaseModel):
    kind: Literal["cash"]


TYPES: dict[str, Any] = {
    "order": Order,
    "payment": Annotated[Card | Cash, Field(discriminator="kind")],
    "anything": Any,
    "numbers": list[int],
    "table": dict[str, float],
    "text": str,
    "time": datetime,
}
_LONGEST = 8192
"""Bytes: what is kept of a cause, so that nothing of it is cut."""

_JSON_TEXTS = tuple(b'"' + value + b'"' for value in VALUES)


@pytest.mark.parametrize("name", TYPES)
def test_every_body_is_a_payload_or_a_decode_error(name: str) -> None:
    decode: Callable[[Message], Any] = body_decoder(TYPES[name])

    def make(mutator: Mutator) -> bytes:
        return mutator.bytes_of(_JSON_TEXTS) if mutator.chance(4) else mutator.body()

    def check(body: bytes) -> None:
        try:
            decode(Message(id="1", topic="orders", body=body))
        except DecodeError as error:
            text = str(error)
            assert text.isprintable()
            assert len(text.encode()) < _LONGEST

    fuzz(f"payload.{name}", make, check, share=2)
