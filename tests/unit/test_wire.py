"""What arrives is untrusted: whatever it is, one valid message comes of it, and never an error."""

from __future__ import annotations

import hashlib
import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from reliable_mq.message import Message
from reliable_mq.names import MAX_KEY_BYTES, MAX_MESSAGE_ID_BYTES, has_control_characters
from reliable_mq.wire import (
    CONTENT_TYPE,
    MAX_CONTENT_TYPE_BYTES,
    MESSAGE_ID,
    MESSAGE_KEY,
    MESSAGE_TIME,
    Limits,
    RawMessage,
    application_headers,
    decode,
    encode_headers,
    format_time,
    has_id,
    is_reserved,
    parse_time,
)

LIMITS = Limits()
NATIVE = (MESSAGE_ID, MESSAGE_TIME, MESSAGE_KEY, CONTENT_TYPE)

# --- anything at all -----------------------------------------------------------------------------

_any_text = st.text(st.characters())  # lone surrogates included
_any_name = _any_text | st.sampled_from([*NATIVE, "ce_id", "body", "traceparent", "Message-Id"])
_any_value = (
    st.binary(max_size=2000)
    | st.text().map(str.encode)
    | st.datetimes().map(lambda time: time.isoformat().encode())
)
_raw_messages = st.builds(
    RawMessage,
    topic=st.just("orders"),
    body=st.binary(max_size=100),
    headers=st.lists(st.tuples(_any_name, _any_value), max_size=20),
    key=st.none() | st.binary(max_size=3000),
    position=st.none() | _any_text,
    native_id=st.none() | _any_text | st.binary(max_size=600),
    native_content_type=st.none() | _any_text,
    native_time=st.none() | st.integers() | st.datetimes() | st.datetimes(timezones=st.timezones()),
)
_limits = st.builds(
    Limits,
    message_bytes=st.integers(0, 200),
    header_count=st.integers(0, 30),
    header_bytes=st.integers(0, 5000),
)


def _is_storable(text: str, limit: int) -> bool:
    return 0 < len(text.encode()) <= limit and not has_control_characters(text)


@given(_raw_messages, _limits)
@example(RawMessage(topic="t", body=b"", native_time=datetime.fromisoformat("0001-01-01")), LIMITS)
@example(RawMessage(topic="t", body=b"", native_id="\udc80"), LIMITS)
@example(
    RawMessage(
        topic="t", body=b"", native_time=datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
    ),
    LIMITS,
)
def test_every_raw_message_becomes_a_message_whose_fields_fit_their_columns(raw, limits):
    message = decode(raw, limits).message
    assert message.topic == raw.topic
    assert message.body == raw.body
    assert _is_storable(message.id, MAX_MESSAGE_ID_BYTES)
    assert message.key is None or _is_storable(message.key, MAX_KEY_BYTES)
    assert message.content_type is None or _is_storable(
        message.content_type, MAX_CONTENT_TYPE_BYTES
    )
    assert message.time.tzinfo is UTC
    assert 1970 <= message.time.year <= 9998


@given(_raw_messages)
def test_the_same_delivery_has_the_same_id_each_time_where_that_is_promised(raw):
    first, again = decode(raw, LIMITS), decode(raw, LIMITS)
    assert first.stable_id == again.stable_id
    assert (first.message.id == again.message.id) == first.stable_id


@given(_raw_messages)
def test_the_id_is_unstable_only_where_nothing_names_the_message(raw):
    if raw.position or raw.native_id:
        assert decode(raw, LIMITS).stable_id


@given(_raw_messages)
def test_no_header_of_ours_reaches_the_application_as_one_of_its_own(raw):
    assert not set(decode(raw, LIMITS).message.headers) & set(NATIVE)


# --- limits --------------------------------------------------------------------------------------


@given(_raw_messages, _limits)
def test_a_message_has_a_fault_exactly_when_it_is_over_a_limit(raw, limits):
    size = sum(len(name) + len(value) for name, value in raw.headers)
    over = (
        len(raw.body) > limits.message_bytes
        or len(raw.headers) > limits.header_count
        or size > limits.header_bytes
    )
    assert (decode(raw, limits).fault is not None) == over


@given(_raw_messages, _limits)
def test_no_more_headers_than_the_limit_are_taken_in(raw, limits):
    assert len(decode(raw, limits).message.headers) <= limits.header_count


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (RawMessage(topic="t", body=b"x" * 11), "oversize: the body has 11 bytes, the limit is 10"),
        (
            RawMessage(topic="t", body=b"", headers=[("a", b"")] * 3),
            "headers: there are 3, the limit is 2",
        ),
        (
            RawMessage(topic="t", body=b"", headers=[("a", b"x" * 20)]),
            "headers: they have 21 bytes, the limit is 20",
        ),
    ],
)
def test_a_fault_names_the_value_and_the_limit(raw, fault):
    assert decode(raw, Limits(message_bytes=10, header_count=2, header_bytes=20)).fault == fault


def test_a_message_with_too_many_headers_keeps_the_id_that_stands_behind_them():
    headers = [("x", b"1")] * 500 + [(MESSAGE_ID, b"the-id")]
    decoded = decode(RawMessage(topic="t", body=b"", headers=headers), LIMITS)
    assert decoded.fault
    assert (decoded.message.id, decoded.stable_id) == ("the-id", True)


# --- ids, keys, times ----------------------------------------------------------------------------


def _decode(**fields):
    return decode(RawMessage(**{"topic": "t", "body": b"", **fields}), LIMITS)


def test_the_brokers_own_id_wins_over_headers_and_headers_over_the_position():
    headers = [("ce_id", b"cloud"), (MESSAGE_ID, b"header")]
    fields = {"position": "t/0/7", "headers": headers}
    assert _decode(native_id="native", **fields).message.id == "native"
    assert _decode(native_id=b"native", **fields).message.id == "native"
    assert _decode(**fields).message.id == "header"
    assert _decode(headers=headers[:1], position="t/0/7").message.id == "cloud"
    assert _decode(position="t/0/7").message.id == "t/0/7"


def test_without_any_id_or_position_a_fresh_one_is_made_up_and_marked():
    first, second = _decode(), _decode()
    assert not first.stable_id
    assert first.message.id != second.message.id


@pytest.mark.parametrize("empty", ["", b""], ids=repr)
def test_an_empty_id_is_none(empty):
    assert _decode(native_id=empty, position="t/0/7").message.id == "t/0/7"


@pytest.mark.parametrize(
    ("ids", "named"),
    [([], False), ([b""], False), ([b"m"], True), ([b"m", b""], False), ([b"", b"m"], True)],
)
def test_a_position_may_be_left_out_only_where_decoding_finds_an_id(ids, named):
    """Else the message would have another id with each redelivery, and be handled again."""
    headers = [(MESSAGE_ID, value) for value in ids]
    assert has_id(headers) is named
    assert decode(RawMessage(topic="t", body=b"", headers=headers), LIMITS).stable_id is named


@pytest.mark.parametrize("value", [b"\xff", b"a\x00b", b"a\nb", b"x" * 256, "ä".encode() * 128])
def test_an_id_that_no_column_can_hold_is_named_by_the_hash_of_its_bytes(value):
    expected = "sha256:" + hashlib.sha256(value).hexdigest()
    assert _decode(headers=[(MESSAGE_ID, value)]).message.id == expected
    assert _decode(native_id=value).message.id == expected


@pytest.mark.parametrize("value", [b"\xff", b"a\x00b", b"x" * 1025])
def test_a_key_that_no_column_can_hold_is_named_by_the_hash_of_its_bytes(value):
    expected = "sha256:" + hashlib.sha256(value).hexdigest()
    assert _decode(key=value).message.key == expected
    assert _decode(headers=[(MESSAGE_KEY, value)]).message.key == expected


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_different_foreign_keys_stay_different(one, other):
    assume(one != other and not one.startswith(b"sha256:") and not other.startswith(b"sha256:"))
    assert _decode(key=one).message.key != _decode(key=other).message.key


def test_a_foreign_empty_key_is_no_key():
    assert _decode(key=b"").message.key is None
    assert _decode(headers=[(MESSAGE_KEY, b"")]).message.key is None


def test_the_brokers_own_key_wins_over_the_header():
    assert _decode(key=b"native", headers=[(MESSAGE_KEY, b"header")]).message.key == "native"


@given(st.datetimes(timezones=st.timezones()))
def test_a_formatted_time_parses_to_the_same_instant(time):
    assume(1 < time.year < 9999)
    assert parse_time(format_time(time).encode()) == time.astimezone(UTC)


@pytest.mark.parametrize(
    "value",
    [b"", b"now", b"2026-01-01T00:00:00", b"2026-13-01T00:00:00Z", b"\xff", b"1700000000",
     b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"2026-01-01T00:00:00Z" * 9],
)  # fmt: skip
def test_a_time_without_a_zone_or_out_of_range_is_not_believed(value):
    assert parse_time(value) is None


@given(st.binary(max_size=60))
def test_parse_time_never_raises_and_is_always_aware(value):
    time = parse_time(value)
    assert time is None or time.tzinfo is UTC


def test_a_forged_time_falls_back_to_the_brokers_own_and_then_to_now():
    native = datetime(2026, 5, 1, tzinfo=UTC)
    forged = [(MESSAGE_TIME, b"0001-01-01T00:00:00+00:00")]
    assert _decode(headers=forged, native_time=native).message.time == native
    before = datetime.now(UTC)
    assert before <= _decode(headers=forged).message.time <= datetime.now(UTC)


def test_a_time_of_the_broker_without_a_zone_is_utc():
    assert _decode(native_time=datetime(2026, 5, 1)).message.time == datetime(  # noqa: DTZ001
        2026, 5, 1, tzinfo=UTC
    )


@pytest.mark.parametrize("value", ["text/plain\x00", "x" * 256, ""])
def test_a_content_type_that_no_column_can_hold_is_none(value):
    assert _decode(native_content_type=value).message.content_type is None
    assert _decode(headers=[(CONTENT_TYPE, value.encode())]).message.content_type is None


# --- headers -------------------------------------------------------------------------------------


def test_a_utf8_value_is_text_any_other_bytes_and_of_duplicates_the_last_counts():
    pairs = [("a", b"1"), ("b", b"\xff"), ("a", "ü".encode()), ("", b"")]
    assert application_headers(pairs) == {"a": "ü", "b": b"\xff", "": ""}


def test_headers_of_a_received_message_cannot_be_changed():
    message = _decode(headers=[("a", b"1")]).message
    with pytest.raises(TypeError):
        message.headers["a"] = "2"


@pytest.mark.parametrize(
    "name",
    ["message-id", "Message-ID", "message-time", "message-key", "content-type", "Content-Type",
     "traceparent", "body", "BODY", "reliable-mq-", "reliable-mq-anything", "Reliable-MQ-x"],
)  # fmt: skip
def test_names_of_the_library_are_reserved_in_any_case_of_letters(name):
    assert is_reserved(name)


@pytest.mark.parametrize("name", ["", "a", "x-message-id", "reliable-mq", "bodies", "tracestate"])
def test_other_names_are_free(name):
    assert not is_reserved(name)


# --- there and back ------------------------------------------------------------------------------

_ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=60)
_own_names = st.text(string.ascii_letters + "-_.", min_size=1).filter(lambda n: not is_reserved(n))
_not_utf8 = st.binary(max_size=40).map(lambda value: b"\xff" + value)
_messages = st.builds(
    Message,
    id=_ids,
    topic=st.just("orders"),
    key=st.none() | _ids,
    body=st.binary(),
    headers=st.dictionaries(_own_names, st.text() | _not_utf8, max_size=8),
    content_type=st.none() | st.sampled_from(["application/json", "text/plain; charset=utf-8"]),
    time=st.datetimes(datetime(1970, 1, 3), datetime(9998, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)


@given(_messages)
def test_what_is_encoded_decodes_to_the_same_message(message):
    raw = RawMessage(topic=message.topic, body=message.body, headers=encode_headers(message))
    decoded = decode(raw, Limits(header_bytes=1_000_000))
    assert decoded.message == message
    assert (decoded.fault, decoded.stable_id) == (None, True)


@given(_messages)
def test_what_the_broker_carries_natively_is_not_sent_twice_and_comes_back(message):
    pairs = encode_headers(message, native=NATIVE)
    assert not {name for name, _ in pairs} & set(NATIVE)
    raw = RawMessage(
        topic=message.topic,
        body=message.body,
        headers=pairs,
        key=None if message.key is None else message.key.encode(),
        native_id=message.id,
        native_content_type=message.content_type,
        native_time=message.time,
    )
    assert decode(raw, Limits(header_bytes=1_000_000)).message == message
