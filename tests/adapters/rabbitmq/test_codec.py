from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq_rabbitmq.codec import UNDECODED, decode_properties, encode_properties
from tests.adapters.rabbitmq.foreign import header_table, long_string


def headers_of(*fields: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    return decode_properties(header_table(fields).encode()[0]).headers


@given(
    message_id=st.text(max_size=60),
    timestamp=st.integers(0, 2**64 - 1),
    content_type=st.none() | st.text(max_size=60),
    headers=st.lists(st.tuples(st.text(max_size=60), st.text() | st.binary())),
)
def test_what_is_encoded_is_decoded_to_the_same_bytes(
    message_id: str,
    timestamp: int,
    content_type: str | None,
    headers: list[tuple[str, str | bytes]],
) -> None:
    raw = encode_properties(
        message_id=message_id, timestamp=timestamp, content_type=content_type, headers=headers
    )
    found = decode_properties(raw)
    assert found.message_id == message_id.encode()
    assert found.timestamp == timestamp
    assert found.content_type == (None if content_type is None else content_type.encode())
    sent = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
    assert found.headers == sent


@given(st.binary(max_size=300))
def test_no_bytes_are_too_strange_to_be_decoded(raw: bytes) -> None:
    decode_properties(raw)


@given(st.binary(max_size=200))
def test_no_header_table_is_too_strange_to_be_decoded(table: bytes) -> None:
    decode_properties(struct.pack(">HI", 1 << 13, len(table)) + table)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (long_string(b"text"), b"text"),
        (long_string(b"\xff\xfe"), b"\xff\xfe"),
        (b"x" + struct.pack(">I", 2) + b"\x00\xff", b"\x00\xff"),
        (b"t\x01", b"true"),
        (b"t\x00", b"false"),
        (b"b\xff", b"-1"),
        (b"B\xff", b"255"),
        (b"s\xff\xfe", b"-2"),
        (b"u\xff\xfe", b"65534"),
        (b"I" + struct.pack(">i", -3), b"-3"),
        (b"i" + struct.pack(">I", 4_000_000_000), b"4000000000"),
        (b"l" + struct.pack(">q", -(2**63)), b"-9223372036854775808"),
        (b"f" + struct.pack(">f", 1.5), b"1.5"),
        (b"d" + struct.pack(">d", 0.1), b"0.1"),
        (b"d" + struct.pack(">d", float("nan")), b"nan"),
        (b"d" + struct.pack(">d", float("-inf")), b"-inf"),
        (b"D\x02" + struct.pack(">i", -1234), b"-12.34"),
        (b"T" + struct.pack(">Q", 1_700_000_000), b"1700000000"),
        (b"T" + struct.pack(">Q", 2**64 - 1), b"18446744073709551615"),
        (b"V", b""),
    ],
)
def test_a_value_of_each_type_has_stable_bytes(value: bytes, expected: bytes) -> None:
    assert headers_of(("before", b"V"), ("h", value), ("after", long_string(b"x"))) == [
        ("before", b""),
        ("h", expected),
        ("after", b"x"),
    ]


def test_lists_and_tables_are_json() -> None:
    inner = b"\x01k" + long_string(b"v") + b"\x01n" + b"I" + struct.pack(">i", 7)
    table = b"F" + struct.pack(">I", len(inner)) + inner
    items = table + b"V" + b"t\x01" + long_string(b"\xff")
    headers = headers_of(("list", b"A" + struct.pack(">I", len(items)) + items))
    assert json.loads(headers[0][1]) == [{"k": "v", "n": 7}, None, True, "\\xff"]


def test_what_is_nested_too_deeply_is_kept_as_it_is_and_hides_nothing_after_it() -> None:
    value = b"V"
    for _ in range(20_000):
        value = b"A" + struct.pack(">I", len(value)) + value
    assert headers_of(("deep", value), ("after", long_string(b"x"))) == [
        ("deep", value),
        ("after", b"x"),
    ]


def test_a_name_that_is_no_text_is_still_a_name() -> None:
    raw = b"\x02\xff\xfe" + b"V"
    found = decode_properties(struct.pack(">HI", 1 << 13, len(raw)) + raw)
    assert found.headers == [("\\xff\\xfe", b"")]


def test_what_follows_a_value_of_an_unknown_type_is_kept_undecoded() -> None:
    assert headers_of(("known", long_string(b"x")), ("odd", b"?abc")) == [
        ("known", b"x"),
        (UNDECODED, b"abc"),
    ]


@pytest.mark.parametrize("kind", [b"S", b"x"])
def test_what_is_left_of_a_value_that_is_cut_short_is_kept_undecoded(kind: bytes) -> None:
    cut_short = kind + struct.pack(">I", 100) + b"rest"
    assert headers_of(("known", long_string(b"x")), ("cut short", cut_short)) == [
        ("known", b"x"),
        (UNDECODED, b"rest"),
    ]


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("message id", {"message_id": "x" * 256}),
        ("content type", {"content_type": "x" * 256}),
        ("header name", {"headers": [("\N{SNOWMAN}" * 86, "")]}),
    ],
)
def test_what_does_not_fit_a_short_string_is_named(what: str, arguments: dict[str, object]) -> None:
    valid = {"message_id": "1", "timestamp": 0, "content_type": None, "headers": []}
    with pytest.raises(ValueError, match=f"the {what} .* AMQP allows 255"):
        encode_properties(**{**valid, **arguments})  # type: ignore[arg-type]
