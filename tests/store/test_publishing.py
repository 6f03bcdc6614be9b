"""Messages as ``publish`` builds them: what nobody could read never gets into the outbox."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_serializer
from typing_extensions import TypedDict

from reliable_mq.errors import ConfigurationError, InvalidMessageError
from reliable_mq.message import Message
from reliable_mq.publishing import build_message
from reliable_mq.store import Store, codec, outbox
from reliable_mq.wire import Limits, RawMessage, decode, encode_headers, is_reserved
from tests.store.conftest import open_store

NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
SECRET = "s3cr3t-value"


class FixedClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


def build(payload: Any = None, *, topic: str = "orders", **options: Any) -> Message:
    given: dict[str, Any] = {
        "payload_type": None,
        "key": None,
        "headers": None,
        "message_id": None,
        "content_type": None,
        "clock": FixedClock(),
        "max_message_bytes": 1000,
        "max_header_count": 20,
        "max_header_bytes": 2000,
    }
    return build_message(topic, payload, **{**given, **options})


def refused(payload: Any = None, **options: Any) -> str:
    with pytest.raises(InvalidMessageError) as caught:
        build(payload, **options)
    assert caught.value.__cause__ is None
    assert SECRET not in str(caught.value)
    return str(caught.value)


class Order(BaseModel):
    id: int
    customer: str
    note: str | None = None


def test_members_of_an_enum_are_the_text_that_they_are():
    """Where it goes by ``str()`` on its way, such a name would become that of the member."""

    class Name(str, Enum):  # noqa: UP042 - shows its own name
        ORDERS = "orders"
        TENANT = "tenant"
        VALUE = "ü"

    message = build(
        None,
        topic=Name.ORDERS,
        key=Name.VALUE,
        message_id=Name.VALUE,
        headers={Name.TENANT: Name.VALUE},
    )
    texts = [message.topic, message.key, message.id, *message.headers, *message.headers.values()]
    assert texts == ["orders", "ü", "ü", "tenant", "ü"]
    assert {type(one) for one in texts} == {str}


# --- the payload --------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    at: datetime


class Row(TypedDict):
    id: int


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (None, None),
        (True, True),
        ("täxt", "täxt"),
        (17, 17),
        (2**80, 2**80),
        ([1, 2.5, {"a": None}], [1, 2.5, {"a": None}]),
        ({"b": (1, 2), 3: {4}}, {"b": [1, 2], "3": [4]}),
        (Order(id=1, customer="ann"), {"id": 1, "customer": "ann", "note": None}),
        (Point(1, NOW), {"x": 1, "at": "2026-05-04T03:02:01.123456Z"}),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Decimal("1.10"), "1.10"),
        ([Order(id=1, customer="a")], [{"id": 1, "customer": "a", "note": None}]),
    ],
)
def test_anything_pydantic_can_serialise_becomes_json(payload, expected):
    message = build(payload)
    got: Any = json.loads(message.body)
    assert got == expected
    assert message.content_type == "application/json"


@pytest.mark.parametrize("payload", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
@pytest.mark.parametrize("type_", [None, Any, bytes])
def test_bytes_stay_as_they_are(payload, type_):
    message = build(payload, payload_type=type_)
    assert (message.body, message.content_type) == (b"\x00\xff", "application/octet-stream")
    assert build(b"{}", content_type="application/json").content_type == "application/json"


def test_a_payload_is_encoded_at_once():
    payload = {"n": 1}
    message = build(payload)
    payload["n"] = 2
    decoded: Any = message.decode(Any)
    assert decoded == {"n": 1}


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (Order, Order(id=1, customer="ann")),
        (Order, {"id": "1", "customer": "ann"}),
        (list[Order], [Order(id=1, customer="ann")]),
        (dict[str, int], {"a": 1}),
        (Row, {"id": 3}),
        (Point, Point(1, NOW)),
        (int | str, "x"),
        (datetime, NOW),
        (Literal["a"], "a"),
    ],
)
def test_what_a_typed_topic_is_given_can_be_read_by_its_type(type_, payload):
    message = build(payload, payload_type=type_)
    assert message.decode(type_) == message.decode(type_)
    if isinstance(payload, dict) and type_ is Order:
        payload = Order(id=1, customer="ann")
    assert message.decode(type_) == payload


def test_aliases_are_written_as_they_are_read():
    class Aliased(BaseModel):
        order_id: Annotated[int, Field(alias="orderId")]

    payload = Aliased.model_validate({"orderId": 7})
    message = build(payload, payload_type=Aliased)
    assert json.loads(message.body) == {"orderId": 7}
    assert message.decode(Aliased) == payload
    assert build(payload).body == message.body
    assert build([payload]).body == b"[" + message.body + b"]"


def test_a_payload_that_does_not_fit_its_type_is_refused_by_field_without_its_value():
    text = refused({"id": SECRET}, payload_type=Order)
    assert "id (int_parsing), customer (missing)" in text
    text = refused(SECRET, payload_type=bytes)
    assert "is bytes, got str" in text
    assert "payload (model_type)" in refused(b"{}", payload_type=Order)


def test_a_model_whose_field_was_set_to_something_else_is_refused():
    order = Order(id=1, customer="ann")
    order.id = SECRET  # type: ignore[assignment]
    for type_ in (Order, None):
        text = refused(order, payload_type=type_)
        assert "Expected `int`" in text
        assert "field_name='id'" in text


class Nan(BaseModel):
    value: float
    other: str | None = None
    deep: list[dict[str, float]] = []


class NanAsText(Nan):
    model_config = ConfigDict(ser_json_inf_nan="strings")


class NanAsConstant(Nan):
    model_config = ConfigDict(ser_json_inf_nan="constants")


@pytest.mark.parametrize(
    "payload",
    [
        math.nan,
        {"a": [math.inf]},
        {"NaN": -math.inf},
        Nan(value=math.nan),
        Nan(value=1, deep=[{"a": math.inf}]),
        NanAsConstant(value=math.nan),
        {"a": Nan(value=math.nan), "b": "NaN", "c": None},
    ],
)
def test_nan_and_infinity_have_no_json_and_are_refused(payload):
    assert "NaN" in refused(payload)


@pytest.mark.parametrize(
    "payload",
    [
        Nan(value=math.nan),
        Nan(value=1, deep=[{"a": math.inf}]),
        NanAsConstant(value=-math.inf),
    ],
)
def test_the_same_for_a_typed_topic(payload):
    assert "NaN" in refused(payload, payload_type=type(payload))


def test_a_type_that_gives_nan_a_form_is_taken_at_its_word():
    message = build(NanAsText(value=math.nan), payload_type=NanAsText)
    assert math.isnan(message.decode(NanAsText).value)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", 'say "NaN"', "\\", '\\"NaN'])
def test_texts_that_look_like_it_are_texts(text):
    got: Any = build({text: [text, None]}).decode(Any)
    assert got == {text: [text, None]}
    assert build(Order(id=1, customer=text), payload_type=Order).decode(Order).customer == text


def circular() -> list[Any]:
    payload: list[Any] = []
    payload.append(payload)
    return payload


def deep() -> list[Any]:
    payload: list[Any] = []
    for _ in range(5000):
        payload = [payload]
    return payload


class Broken(BaseModel):
    id: int

    @field_serializer("id")
    def fail(self, value: int) -> int:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "payload",
    [
        object(),
        {"a": object()},
        "\ud800",
        {"\ud800": 1},
        [b"\xff"],
        circular(),
        deep(),
        Broken(id=1),
    ],
)
def test_what_cannot_be_json_is_refused(payload):
    assert "JSON" in refused(payload)


def test_a_message_is_not_a_payload():
    assert "pass its body" in refused(build(1))
    assert "pass its body" in refused(build(1), payload_type=Message)


def test_a_type_that_pydantic_does_not_know_is_the_topics_fault():
    class Unknown:
        pass

    with pytest.raises(ConfigurationError, match="payload type of topic 'orders'"):
        build(Unknown(), payload_type=Unknown)


def test_the_size_is_limited_and_both_numbers_are_named():
    assert len(build(b"x" * 1000).body) == 1000
    text = refused(b"x" * 1001)
    assert "1001 bytes" in text
    assert "max_message_bytes is 1000" in text
    assert "1000" in refused("x" * 999)


# --- what surrounds it --------------------------------------------------------------------------


def test_fields_are_what_was_given():
    message = build(
        1, key="änn", message_id="order-1", headers={"a": "b", "c": b"\xff"}, content_type="x/y"
    )
    assert (message.id, message.topic, message.key) == ("order-1", "orders", "änn")
    assert dict(message.headers) == {"a": "b", "c": b"\xff"}
    assert (message.content_type, message.time) == ("x/y", NOW)


def test_ids_are_made_where_none_is_given_and_rise():
    first, second = build(), build()
    assert first.id != second.id
    assert UUID(first.id).version == UUID(second.id).version == 7
    assert first.key is None
    assert first.headers == {}


def test_headers_are_copied_and_cannot_be_changed():
    headers = {"a": "b"}
    message = build(headers=headers)
    headers["a"] = "c"
    assert message.headers == {"a": "b"}
    with pytest.raises(TypeError):
        message.headers["a"] = "d"  # type: ignore[index]


@pytest.mark.parametrize("topic", ["", "a b", ".", "x" * 250, "ä"])
def test_a_topic_that_cannot_be_is_refused(topic):
    with pytest.raises(ConfigurationError, match="topic"):
        build(topic=topic)


@pytest.mark.parametrize("what", ["message_id", "key", "content_type"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "empty"),
        ("a\nb", "control character"),
        ("a\r", "control character"),
        ("\x00", "control character"),
        ("\x7f", "control character"),
        ("\ud800", "surrogate"),
        (7, "text, got int"),
        (b"x", "text, got bytes"),
        ("ä" * 600, "1200 bytes, the limit is"),
    ],
)
def test_identifiers_that_not_every_broker_keeps_are_refused(what, value, problem):
    text = refused(**{what: value})
    assert what in text
    assert problem in text


@pytest.mark.parametrize(
    ("what", "limit"), [("message_id", 255), ("key", 1024), ("content_type", 255)]
)
def test_identifiers_may_be_as_long_as_their_columns(what, limit):
    assert getattr(build(**{what: "x" * limit}), what.removeprefix("message_")) == "x" * limit
    assert f"limit is {limit}" in refused(**{what: "x" * (limit + 1)})


@pytest.mark.parametrize(
    "name",
    [
        "message-id", "message-time", "message-key", "content-type", "traceparent", "body",
        "Message-ID", "BODY", "reliable-mq-origin-id", "Reliable-MQ-anything",
    ],
)  # fmt: skip
def test_headers_of_the_librarys_own_are_refused(name):
    assert "library's own" in refused(headers={name: "x"})


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"": "x"}, "header name is empty"),
        ({"a\r\nb": "x"}, "control character"),
        ({"a\x00": "x"}, "control character"),
        ({"a\ud800": "x"}, "surrogate"),
        ({"x" * 256: "x"}, "limit is 255"),
        ({1: "x"}, "text, got int"),
        ({"a": 1}, "'a' must be str or bytes, got int"),
        ({"a": None}, "must be str or bytes, got NoneType"),
        ({"a": "\ud800"}, "surrogate"),
    ],
)
def test_headers_that_not_every_broker_keeps_are_refused(headers, problem):
    assert problem in refused(headers=headers)


def test_header_limits_count_as_a_consumer_counts():
    fits = {f"h{n}": "" for n in range(20 - 5)}  # id, time, key, content type, traceparent
    message = build(1, key="k", headers=fits)
    pairs = [*encode_headers(message), ("traceparent", b"0" * 55)]
    limits = Limits(header_count=20, header_bytes=2000)
    assert decode(RawMessage(topic="orders", body=b"", headers=pairs), limits).fault is None
    assert "max_header_count, 20" in refused(1, key="k", headers={**fits, "more": ""})


def test_header_bytes_count_as_a_consumer_counts():
    def size(message: Message) -> int:
        pairs = [*encode_headers(message), ("traceparent", b"0" * 55)]
        return sum(len(name) + len(value) for name, value in pairs)

    spare = 2000 - size(build(1, headers={"a": ""}))
    assert size(build(1, headers={"a": "x" * spare})) == 2000
    assert "max_header_bytes is 2000" in refused(1, headers={"a": "x" * (spare + 1)})


# --- round trips ----------------------------------------------------------------------------------

any_text = st.text(st.characters(codec="utf-8"), max_size=30)
controls = [*map(chr, range(32)), "\x7f"]
texts = st.text(st.characters(codec="utf-8", exclude_characters=controls), min_size=1, max_size=30)
names = texts.filter(lambda name: not is_reserved(name))
headers = st.dictionaries(names, any_text | st.binary(), max_size=3)
scalars = st.none() | st.booleans() | st.integers() | any_text
payloads = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def as_text_where_it_is(headers: Any) -> dict[str, Any]:
    def read(value: str | bytes) -> str | bytes:
        try:
            return value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            return value

    return {name: read(value) for name, value in headers.items()}


@given(payload=payloads, key=st.none() | texts, id_=texts, headers=headers)
def test_a_message_survives_the_way_to_a_consumer(payload, key, id_, headers):
    sent = build(payload, key=key, message_id=id_, headers=headers, max_message_bytes=10**6)
    raw = RawMessage(topic="orders", body=sent.body, headers=encode_headers(sent))
    decoded = decode(raw, Limits())
    got = decoded.message
    assert decoded.fault is None
    assert (got.id, got.key, got.body, got.time) == (sent.id, sent.key, sent.body, sent.time)
    assert got.content_type == sent.content_type
    assert got.headers == as_text_where_it_is(sent.headers)
    assert got.decode(Any) == payload
    assert codec.unpack_headers(codec.pack_headers(sent.headers)) == as_text_where_it_is(headers)


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def outbox_of(request: pytest.FixtureRequest) -> Iterator[Store]:
    store = open_store(request.getfixturevalue(f"lasting_{request.param}_url"))
    yield store
    store.dispose()


@settings(max_examples=25, deadline=None)
@given(body=st.binary(), key=st.none() | texts, id_=texts, headers=headers, kind=texts)
def test_a_message_survives_the_outbox(outbox_of, body, key, id_, headers, kind):
    sent = build(body, key=key, message_id=id_, headers=headers, content_type=kind)
    table = outbox_of.tables.outbox
    with outbox_of.engine.begin() as connection:
        connection.execute(table.delete())
        outbox.append(outbox_of, connection, sent)
    with outbox_of.engine.connect() as connection:
        row = connection.execute(table.select()).one()
    assert (row.message_id, row.topic) == (sent.id, sent.topic)
    assert (None if row.message_key is None else bytes(row.message_key).decode()) == sent.key
    assert (bytes(row.body), row.content_type) == (sent.body, sent.content_type)
    assert codec.unpack_headers(bytes(row.headers)) == as_text_where_it_is(sent.headers)
