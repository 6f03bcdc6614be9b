"""Records that the client collected before a partition changed hands are nobody's.

No broker can be made to let a rebalance come in the middle of one call of the client's, so the
client's side is played here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, TopicPartition

from reliable_mq_kafka.intake import Intake

TOPIC = "orders"
Rebalance = Callable[[Any, list[TopicPartition]], None]


class Record:
    """A message at an offset of a partition."""

    def __init__(self, partition: int, offset: int) -> None:
        self._partition, self._offset = partition, offset

    def __len__(self) -> int:
        return 1

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return b"{}"

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, 0

    def error(self) -> None: ...
    def key(self) -> None: ...
    def headers(self) -> None: ...


class PlayedClient:
    """Does and returns with each ``consume`` what comes next; notes where it is led to."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], Sequence[Record]]] = []
        self.led_to: list[tuple[int, int]] = []
        self._begin: Rebalance
        self._lose: Rebalance

    def subscribe(
        self, topics: list[str], on_assign: Rebalance, on_revoke: Rebalance, on_lost: Rebalance
    ) -> None:
        self._begin, self._lose = on_assign, on_lost

    def consume(self, count: int, timeout: float) -> Sequence[Record]:
        return self.steps.pop(0)()

    def poll(self, timeout: float) -> None: ...

    def assign(self, *partitions: int) -> None:
        self._begin(self, [TopicPartition(TOPIC, one) for one in partitions])

    def lose(self, *partitions: int) -> None:
        self._lose(self, [TopicPartition(TOPIC, one) for one in partitions])

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.led_to += [(one.partition, one.offset) for one in partitions]

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None: ...

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """The group is at 6 in partition 0, at 3 in partition 1."""
        at = (6, 3)
        return [TopicPartition(TOPIC, one.partition, at[one.partition]) for one in partitions]

    def consumer_group_metadata(self) -> bytes:
        return b"always the same"


@pytest.fixture
def client() -> PlayedClient:
    return PlayedClient()


@pytest.fixture
def intake(client: PlayedClient) -> Intake:
    clients: Any = SimpleNamespace(
        options=SimpleNamespace(commit_interval=60.0), member=lambda *_: client
    )
    unknown: Any = SimpleNamespace(looks=0, of=lambda _: None)
    return Intake(clients, unknown, [TOPIC], "billing")


def offsets(intake: Intake) -> list[tuple[str, int]]:
    intake.pull(100, 0.0)
    return [(one.partition, one.receipt) for one in intake.take(100)]


def test_what_was_read_for_an_ownership_that_is_over_is_not_taken_for_the_next(
    client: PlayedClient, intake: Intake
) -> None:
    def first() -> Sequence[Record]:
        client.assign(0, 1)
        return []

    def changes_hands() -> Sequence[Record]:
        collected = [Record(0, 9), Record(1, 3)]
        client.lose(0)
        client.assign(0)
        client.led_to.clear()
        return collected

    client.steps = [first, changes_hands, lambda: [Record(0, 6), Record(0, 7), Record(1, 4)]]
    assert offsets(intake) == []
    assert offsets(intake) == [("orders/1", 3)]
    assert client.led_to == [(0, 6)], "it must be read anew"
    assert offsets(intake) == [("orders/0", 6), ("orders/0", 7), ("orders/1", 4)]


def test_what_is_read_after_an_assignment_is_taken(client: PlayedClient, intake: Intake) -> None:
    def assigned() -> Sequence[Record]:
        client.assign(0)
        return []

    client.steps = [assigned, lambda: [Record(0, 6)], lambda: [Record(0, 7)]]
    assert [offsets(intake) for _ in range(3)] == [[], [("orders/0", 6)], [("orders/0", 7)]]


def test_a_member_that_could_not_take_in_what_was_read_reads_nothing_more(
    client: PlayedClient, intake: Intake
) -> None:
    def fails() -> Sequence[Record]:
        raise ValueError("unforeseen")

    client.steps = [fails]
    with pytest.raises(ValueError, match="unforeseen"):
        intake.pull(100, 0.0)
    assert intake.broken
