"""Whatever an adapter hands over: one message, the same each time, or a dead letter."""

from __future__ import annotations

from datetime import UTC, datetime

from reliable_mq.settings import DeadLetterSettings
from reliable_mq.store.texts import clean
from reliable_mq.wire import RawMessage, parse_time
from tests.fuzz.corpus import BODIES, VALUES
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import check_end
from tests.fuzz.running import fuzz

_TIMES = (datetime.min, datetime.max, datetime(2026, 1, 1, tzinfo=UTC), datetime(1969, 12, 31))  # noqa: DTZ001, DTZ901


def _raw(mutator: Mutator) -> RawMessage:
    rare = mutator.chance(4)
    return RawMessage(
        topic="orders",
        body=mutator.body(),
        headers=mutator.pairs(mutator.name),
        key=mutator.value() if mutator.chance(2) else None,
        position=f"orders/0/{mutator.integer()}" if mutator.chance(2) else None,
        native_id=mutator.value() if rare else None,
        native_content_type=mutator.value().decode(errors="surrogateescape") if rare else None,
        native_time=mutator.integer() if mutator.chance(2) else mutator.pick((None, *_TIMES)),
    )


def test_every_raw_message_ends_as_a_message_or_as_a_dead_letter() -> None:
    fuzz("wire.decode", _raw, check_end)


def test_a_time_is_read_as_one_in_utc_or_not_at_all() -> None:
    def check(value: bytes) -> None:
        time = parse_time(value)
        assert time is None or time.tzinfo is UTC

    fuzz("wire.parse_time", Mutator.value, check)


def test_a_cause_fits_its_column_and_every_database_whatever_the_error_says() -> None:
    limit = DeadLetterSettings().max_error_bytes

    def make(mutator: Mutator) -> tuple[str, int]:
        text = mutator.bytes_of((*VALUES, *BODIES)).decode(errors="surrogateescape")
        return text * (1 + mutator.below(8)), mutator.pick((64, 100, limit))

    def check(given: tuple[str, int]) -> None:
        text, most = given
        cause = clean(text, most)
        assert len(cause.encode()) <= most
        assert "\0" not in cause

    fuzz("texts.clean", make, check)
