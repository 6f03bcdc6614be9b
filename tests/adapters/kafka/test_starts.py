"""What is skipped of a partition when it is assigned, and what is waited for before. No broker."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import OFFSET_END, TopicPartition

from reliable_mq_kafka import starts
from reliable_mq_kafka.completed import encode
from reliable_mq_kafka.identities import Identity
from reliable_mq_kafka.partitions import OwnedPartition, Share
from reliable_mq_kafka.starts import Starts
from reliable_mq_kafka.steering import Steering

TOPIC, BEGIN = "orders", 50
MINE, OTHER = "0" * 22, "1" * 22
DONE = [range(52, 54)]


class PlayedClient:
    """Tells what was committed, and notes where it is led to."""

    def __init__(self, metadata: str) -> None:
        self._metadata = metadata
        self.led_to: list[int] = []

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, one.partition, BEGIN, self._metadata) for one in places]

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.led_to += [one.offset for one in places]

    def seek(self, place: TopicPartition) -> None:
        self.led_to.append(place.offset)


class Assigned:
    """A partition that was just assigned, of a topic whose id may be known."""

    def __init__(self, metadata: str, identity: Identity | None) -> None:
        self.identity = identity
        self.client = PlayedClient(metadata)
        client: Any = self.client
        share = Share()
        self._steering = Steering(share, "test")
        identities: Any = self
        self._starts = Starts(share, self._steering, identities, "test")
        self._starts.begin(client, [TopicPartition(TOPIC, 0)])
        (self.partition,) = share

    def of(self, topic: str) -> Identity | None:
        return self.identity if topic == TOPIC else None

    def find(self) -> list[int]:
        """Look once more where to begin; return where the client was led to until now."""
        client: Any = self.client
        self._starts.find(client)
        self._steering.position(client)
        return list(self.client.led_to)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "_AT_FIRST", 0.0)


def known(log: str | None) -> Identity:
    return Identity(log, frozenset(), 1.0)


def delivered(one: OwnedPartition) -> list[int]:
    return [offset for offset in range(BEGIN, BEGIN + 5) if one.read(offset)]


ALL, LEFT = list(range(50, 55)), [50, 51, 54]


@pytest.mark.parametrize(
    ("log", "identity", "expected"),
    [
        (MINE, known(MINE), LEFT),
        (MINE, known(OTHER), ALL),
        (MINE, known(None), ALL),
        (None, known(MINE), LEFT),
        (None, known(None), LEFT),
        (None, None, LEFT),
    ],
)
def test_what_was_done_behind_the_offset_is_skipped_unless_it_was_done_of_another_topic(
    log: str | None, identity: Identity | None, expected: list[int]
) -> None:
    assigned = Assigned(encode(DONE, BEGIN, log=log), identity)
    assert assigned.client.led_to == [BEGIN]
    assert delivered(assigned.partition) == expected


def test_to_judge_what_was_done_it_is_waited_for_the_topics_id() -> None:
    assigned = Assigned(encode(DONE, BEGIN, log=MINE), None)
    assert [assigned.client.led_to, assigned.find()] == [[OFFSET_END]] * 2
    assigned.identity = known(MINE)
    assert assigned.find() == [OFFSET_END, BEGIN]
    assert delivered(assigned.partition) == LEFT


def test_it_is_not_waited_where_there_is_nothing_to_judge() -> None:
    assigned = Assigned(encode([], BEGIN, log=MINE), None)
    assert assigned.client.led_to == [BEGIN]


def test_where_the_topics_id_is_not_told_for_long_everything_is_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starts, "_UNTOLD", 0.0)
    assigned = Assigned(encode(DONE, BEGIN, log=MINE), None)
    assert assigned.client.led_to == [BEGIN]
    assert delivered(assigned.partition) == ALL
