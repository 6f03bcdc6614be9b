"""Rows of the log of ``sql://``: the headers are one column, which anybody may have written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from reliable_mq.store.codec import pack_pairs
from reliable_mq_sql.rows import to_raw, why_refused
from tests.fuzz.corpus import VALUES
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import check_end, check_texts
from tests.fuzz.running import fuzz

_HEADERS = (
    b"[]",
    b"",
    b"null",
    pack_pairs([("message-time", b"2026-11-21T10:20:30Z"), ("a", b"b"), ("a", b"\xff")]),
    b'[["name", "base64", "/w=="]]',
    b'[["name", "base64", "!"], ["name"], [], 1, [1, 2], ["name", null]]',
    b'[["\\ud800", "\\udc00"]]',
    b'[["name", {"a": NaN}]]',
)


def _row(mutator: Mutator) -> Any:
    return SimpleNamespace(
        log_offset=mutator.integer() % (1 << 63),
        message_id=mutator.value().decode(errors="replace"),
        message_key=mutator.value() if mutator.chance(2) else None,
        body=mutator.body(),
        headers=mutator.bytes_of(_HEADERS),
        content_type=mutator.pick(VALUES).decode() if mutator.chance(2) else None,
        message_time=min(max(mutator.integer(), -(1 << 63)), (1 << 63) - 1),
    )


def test_every_row_ends_as_a_message_or_as_a_dead_letter() -> None:
    def check(row: Any) -> None:
        raw, again = to_raw(row, "orders", 0), to_raw(row, "orders", 0)
        assert raw == again
        check_texts(raw.headers)
        copy = check_end(raw)
        assert why_refused(copy, 1 << 20) is None

    fuzz("sql.to_raw", _row, check)
