"""Records of Kafka, and the metadata of a commit."""

from __future__ import annotations

from confluent_kafka import Message as Record

from reliable_mq_kafka.completed import decode, encode
from reliable_mq_kafka.records import headers_of, to_raw
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import check_end, check_texts
from tests.fuzz.running import fuzz

_NOT_AVAILABLE, _CREATED = 0, 1


def _record(mutator: Mutator) -> Record:
    def value(pair: tuple[str, bytes]) -> tuple[str, str | bytes | None]:
        return pair[0], None if mutator.chance(12) else pair[1]

    pairs = [value(pair) for pair in mutator.pairs(mutator.name)]
    milliseconds = mutator.integer() % (1 << 63)
    return Record(
        topic="orders",
        partition=0,
        offset=mutator.integer() % (1 << 63),
        key=mutator.value() if mutator.chance(2) else None,
        value=None if mutator.chance(12) else mutator.body(),
        headers=pairs or None,
        timestamp=(_NOT_AVAILABLE if mutator.chance(8) else _CREATED, milliseconds),
    )


def test_every_record_ends_as_a_message_or_as_a_dead_letter() -> None:
    def check(record: Record) -> None:
        raw = to_raw(record, "orders", 0)
        again = to_raw(record, "orders", 0)
        assert (raw.position, list(raw.headers)) == (again.position, list(again.headers))
        check_texts(raw.headers)
        copy = check_end(raw)
        check_texts(headers_of(copy))  # type: ignore[arg-type]

    fuzz("kafka.to_raw", _record, check)


_RUNS = (
    [range(6, 7)],
    [range(7, 9), range(12, 13), range(20, 2000)],
    [range(6, 1 << 40), range(1 << 50, (1 << 50) + 1)],
    [range(n, n + 1) for n in range(7, 400, 2)],
)
_METADATA = (b"", b"rmq1:", b"somebody else's", *(encode(one, 5).encode() for one in _RUNS))


def test_the_metadata_of_a_commit_names_offsets_behind_it_or_nothing() -> None:
    def make(mutator: Mutator) -> tuple[str, int]:
        text = mutator.bytes_of(_METADATA).decode(errors="replace")
        return text, mutator.pick((0, 5, 1 << 62))

    def check(given: tuple[str, int]) -> None:
        text, begin = given
        runs = decode(text, begin)
        at = begin
        for run in runs:
            assert at < run.start < run.stop < 1 << 63
            at = run.stop
        assert decode(encode(runs, begin, 1 << 20), begin) == runs

    fuzz("kafka.completed", make, check)
