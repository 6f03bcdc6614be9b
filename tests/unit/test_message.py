"""Messages are facts; their texts tell what is wrong with a body and never what is in it."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
import uuid
from copy import copy
from dataclasses import FrozenInstanceError, dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, Base64Bytes, BaseModel, Field
from typing_extensions import TypedDict

from reliable_mq.errors import DecodeError
from reliable_mq.message import (
    Delivery,
    Message,
    Topic,
    body_decoder,
    fingerprint,
    message_of,
    new_message_id,
    type_adapter,
)


class Order(BaseModel):
    id: int
    customer: str


class Refund(BaseModel):
    kind: Literal["refund"]
    amount: Decimal


class Charge(BaseModel):
    kind: Literal["charge"]
    amount: Decimal


Payment = Annotated[Refund | Charge, Field(discriminator="kind")]


@dataclass
class Line:
    sku: str


class Item(TypedDict):
    sku: str


class Colour(Enum):
    RED = "red"


def _message(body: bytes = b"{}") -> Message:
    return Message(id="1", topic="orders", body=body)


# --- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "body", "expected"),
    [
        (Order, b'{"id": 1, "customer": "ann"}', Order(id=1, customer="ann")),
        (
            Payment,
            b'{"kind": "refund", "amount": "1.5"}',
            Refund(kind="refund", amount=Decimal("1.5")),
        ),
        (Line, b'{"sku": "a"}', Line("a")),
        (Item, b'{"sku": "a"}', {"sku": "a"}),
        (dict, b'{"a": [1, null]}', {"a": [1, None]}),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
        (list[date], b'["2026-01-01"]', [date(2026, 1, 1)]),
        (int, b"1", 1),
        (str, b'"a"', "a"),
        (int | str, b'"a"', "a"),
        (Any, b'[1, {"a": 2}]', [1, {"a": 2}]),
        (None, b"null", None),
        (bytes, b"\xff\x00", b"\xff\x00"),
    ],
)
def test_a_body_decodes_to_what_is_asked_for(type_, body, expected):
    assert _message(body).decode(type_) == expected
    assert body_decoder(type_)(_message(body)) == expected


def test_a_message_asked_for_is_the_message_itself():
    message = _message(b"\xff")
    assert message.decode(Message) is message


def test_the_order_of_a_unions_members_counts():
    assert _message(b'"abc"').decode(str | bytes | None) == "abc"
    assert _message(b'"abc"').decode(bytes | str | None) == b"abc"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"id": 1}', b"[]", b'"\xed\xa0\x80"', b"nul"]
)
def test_a_body_that_does_not_fit_is_a_decode_error_that_names_the_type(body):
    with pytest.raises(DecodeError, match="not a valid Order"):
        _message(body).decode(Order)


@pytest.mark.parametrize("type_", [Any, dict, list[Any], Order])
def test_a_body_nested_without_end_is_a_decode_error(type_):
    with pytest.raises(DecodeError):
        _message(b'{"a":' + b"[" * 1_000_000).decode(type_)


@given(st.binary() | st.text().map(str.encode))
def test_decoding_any_bytes_gives_a_value_or_a_decode_error(body):
    for type_ in (Any, Order, Payment, dict, list[Item], int | str):
        with contextlib.suppress(DecodeError):
            _message(body).decode(type_)


CANARY = "CANARY"
_LEAKY = [
    *(Order, Payment, Line, Item, int, bool, float, Decimal, date, datetime, UUID, Colour, AnyUrl),
    *(IPv4Address, Literal["a", "b"], list[int], int | date, dict[str, int], Base64Bytes, Path),
    *(tuple[int, int], set[int], Annotated[str, Field(max_length=2)]),
    Annotated[str, Field(pattern="^x$")],
]
_BODIES = [
    f'"{CANARY}"',
    f'["{CANARY}"]',
    f'{{"id": "{CANARY}", "customer": 1}}',
    f'{{"kind": "{CANARY}"}}',
    f'{{"kind": "refund", "amount": "{CANARY}"}}',
    f'{{"sku": ["{CANARY}"]}}',
    f'{{"a": "{CANARY}"}}',
    f"{CANARY}",
    f'{{"{CANARY}',
    f'"http://{CANARY}:x/"',
]


@pytest.mark.parametrize("type_", _LEAKY, ids=repr)
@pytest.mark.parametrize("body", _BODIES, ids=repr)
def test_the_text_and_traceback_of_a_decode_error_hold_nothing_of_the_body(type_, body):
    with contextlib.suppress(DecodeError):  # some of them fit some types
        _message(body.encode()).decode(type_)
        return
    with pytest.raises(DecodeError) as failed:
        _message(body.encode()).decode(type_)
    assert CANARY not in "".join(traceback.format_exception(failed.value))


def test_a_decode_error_names_the_fields_at_fault():
    with pytest.raises(DecodeError, match=r"id: .*; customer: Field required"):
        _message(b'{"id": "x"}').decode(Order)


def test_a_decode_error_tells_the_tags_a_union_knows_and_not_the_one_that_came():
    with pytest.raises(DecodeError, match=r"'kind' is none of the expected 'refund', 'charge'"):
        _message(b'{"kind": "CANARY"}').decode(Payment)


def test_a_decode_error_stays_short_and_on_one_line_whatever_names_the_body_has():
    body = "{" + ",".join(f'"\\n{number}{"k" * 5000}": "x"' for number in range(50)) + "}"
    with pytest.raises(DecodeError, match=r"and 45 more") as failed:
        _message(body.encode()).decode(dict[str, int])
    assert len(str(failed.value)) < 1000
    assert "\n" not in str(failed.value)


def test_an_error_of_the_applications_own_validator_passes_through():
    class Looked(BaseModel):
        id: int

        def model_post_init(self, context: Any) -> None:
            raise ConnectionError("directory down")

    with pytest.raises(ConnectionError, match="directory down"):
        _message(b'{"id": 1}').decode(Looked)


def test_adapters_are_built_once_for_a_type():
    assert type_adapter(Order) is type_adapter(Order)
    assert type_adapter(list[Order]) is type_adapter(list[Order])


def test_a_type_that_cannot_be_hashed_still_decodes():
    unhashable = Annotated[int, {"note": "a dict in the metadata"}]
    assert _message(b"1").decode(unhashable) == 1


# --- values --------------------------------------------------------------------------------------


def test_messages_and_deliveries_are_immutable():
    message = _message()
    with pytest.raises(FrozenInstanceError):
        message.id = "2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        message.headers["a"] = "b"  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        Delivery(message=message, group="g").attempt = 2  # type: ignore[misc]


def test_a_message_that_is_made_the_quick_way_is_like_any_other():
    now = datetime.now(UTC)
    quick = message_of("1", "orders", "k", b"{}", {"a": "b"}, "application/json", now)
    slow = Message(
        id="1",
        topic="orders",
        key="k",
        body=b"{}",
        headers={"a": "b"},
        content_type="application/json",
        time=now,
    )
    assert type(quick) is Message
    assert quick == slow
    assert replace(quick, id="1") == copy(quick) == slow
    with pytest.raises(FrozenInstanceError):
        quick.id = "2"  # type: ignore[misc]


def test_times_are_aware_and_in_utc():
    before = datetime.now(UTC)
    delivery = Delivery(message=_message(), group="g")
    assert before <= delivery.message.time <= delivery.received_at <= datetime.now(UTC)


def test_a_topic_reads_as_its_name():
    assert str(Topic("orders")) == f"{Topic('orders')}" == "orders"


def test_two_topics_of_a_name_are_different_objects():
    assert Topic("orders") != Topic("orders")


def test_message_ids_are_uuids_of_version_7_and_rise_with_time():
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(new_message_id()) for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    for each in made:
        assert (each.version, each.variant) == (7, uuid.RFC_4122)
        assert before <= each.int >> 80 <= after


def test_the_random_bits_of_message_ids_all_vary():
    ones, zeros = 0, 0
    for _ in range(200):
        value = uuid.UUID(new_message_id()).int
        ones |= value
        zeros |= ~value
    both = ones & zeros
    random_bits = (0xFFF << 64) | ((1 << 62) - 1)
    assert both & random_bits == random_bits


def test_a_message_id_is_lower_case_hex_with_dashes():
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", new_message_id())


@given(st.binary(), st.binary())
def test_fingerprints_tell_bodies_apart(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == other)
    assert len(fingerprint(one)) == 16


def test_a_fingerprint_is_the_same_in_every_release():
    # Stored in inboxes: another value would turn each redelivery into a conflict.
    assert fingerprint(b"").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert fingerprint(b'{"id":1}').hex() == "6dbc2ea685505a5de3248e0c8a59ab5c"
