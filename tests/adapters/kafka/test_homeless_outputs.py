"""Exactly-once outputs that cannot be stored: what waits for them, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from reliable_mq import Message, ReliableMQ, RetryPolicy, Settings
from reliable_mq.adapter import SENT
from reliable_mq.consumer import exactly_once_group, ledger
from reliable_mq.settings import ConsumerSettings
from reliable_mq.testing.contract.messages import numbered, one_key_per_partition
from reliable_mq_kafka.rights import CONSUME, DECLARE, PUBLISH, TRANSACT
from tests.adapters.kafka.copying import read_all, settle
from tests.adapters.kafka.secure import SecureKafka
from tests.e2e.waiting import until

PARTITIONS = 3
PREFETCH = 20
FIRST, LAST = 5, 100
"""Of each partition so many inputs come before the one with the bad output, and in all."""
BAD = FIRST
"""The number of an input of partition 0; those of partition 1 begin at 1000."""
IN_OTHERS = [1000 * one + number for one in range(1, PARTITIONS) for number in range(LAST)]
BEFORE, BEHIND = list(range(FIRST)), list(range(FIRST + 1, LAST))


class Passing:
    """An application that passes numbers on; one of them goes to a topic of its own."""

    def __init__(self, url: str, bootstrap: str, prefix: str, folder: Path) -> None:
        self._bootstrap = bootstrap
        self._stack = ExitStack()
        self.prefix = prefix
        self.mq = ReliableMQ(
            Settings(
                broker_url=url,
                database_url=f"sqlite:///{folder / 'store.db'}",
                group="passing",
                consumer=ConsumerSettings(prefetch=PREFETCH),
            )
        )
        self._stack.callback(self.mq.close)
        self.mq.topic(f"{prefix}-in", int, partitions=PARTITIONS)
        self.mq.topic(f"{prefix}-out", int, partitions=1)
        self.mq.declare()
        for one, key in enumerate(one_key_per_partition(PARTITIONS)):
            batch = numbered(f"{prefix}-in", range(1000 * one, 1000 * one + LAST), key=key)
            assert self.mq._runtime.adapter.publish(batch, 60.0) == [SENT] * LAST

    def close(self) -> None:
        self._stack.close()

    def run(self, target: str, body: bytes = b"5", retry: RetryPolicy | None = None) -> None:
        """Pass everything on, the one number as *body* to *target*; fails for it without one."""

        @self.mq.handler(f"{self.prefix}-in", guarantee="exactly-once", retry=retry)
        def pass_on(number: int, message: Message) -> None:
            if number == BAD and not target:
                raise RuntimeError("not this one")
            bad = number == BAD
            self.mq.publish(target if bad else f"{self.prefix}-out", body if bad else message.body)

        self._stack.enter_context(self.mq.running())

    def outputs(self) -> list[int]:
        return [int(body) for body in self.bodies(f"{self.prefix}-out")]

    def bodies(self, topic: str) -> list[bytes]:
        return read_all(self._bootstrap, topic, "read_committed")

    def stored(self, topic: str) -> list[bytes]:
        """Return the body of everything, once nothing is open."""
        settle(self._bootstrap, topic)
        return self.bodies(topic)

    def wait_for(self, *wanted: list[int]) -> None:
        """Wait until just these are there, those of each partition in their order."""
        expected = sorted(number for part in wanted for number in part)
        until(lambda: len(self.outputs()) >= len(expected), self.outputs)
        found = self.outputs()
        assert sorted(found) == expected
        for one in range(PARTITIONS):
            of_partition = [number for number in found if number // 1000 == one]
            assert of_partition == sorted(of_partition)

    @property
    def lag(self) -> int:
        found = self.mq.status().groups[f"{self.prefix}-in", "passing"].lag
        assert found is not None
        return found


@pytest.fixture
def passing(kafka_url: str, unique: str, tmp_path: Path) -> Iterator[Passing]:
    bootstrap = kafka_url.partition("://")[2]
    with closing(Passing(f"{kafka_url}?session_timeout=6", bootstrap, unique, tmp_path)) as passing:
        yield passing


def test_an_output_without_a_topic_stops_its_own_partition_until_the_topic_is_there(
    passing: Passing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exactly_once_group, "WITHOUT_TOPIC", 0.5)
    monkeypatch.setattr(exactly_once_group, "QUIET", 3600.0)  # however long it waits
    later = f"{passing.prefix}-later"
    passing.run(later)
    passing.wait_for(IN_OTHERS, BEFORE)
    assert f"partition {passing.prefix}-in/0 of group passing waits" in caplog.text
    assert caplog.text.count(later) == 1
    passing.mq.topic(later, int, partitions=1)
    passing.mq.declare()
    passing.wait_for(IN_OTHERS, BEFORE, BEHIND)
    assert passing.stored(later) == [b"5"]
    until(lambda: passing.lag == 0)


def test_an_output_that_is_refused_for_good_becomes_a_dead_letter_and_its_partition_goes_on(
    passing: Passing,
) -> None:
    narrow = f"{passing.prefix}-narrow"
    passing.mq.topic(narrow, partitions=1, options={"max.message.bytes": 1000})
    passing.mq.declare()
    passing.run(narrow, b"x" * 5000, RetryPolicy(max_attempts=2, initial_delay=0.1))
    passing.wait_for(IN_OTHERS, BEFORE, BEHIND)
    assert passing.stored(f"{passing.prefix}-in.passing.dlq") == [b"5"]
    assert passing.bodies(narrow) == []
    until(lambda: passing.lag == 0)


def test_a_delivery_that_waits_for_its_next_attempt_stops_its_own_partition_alone(
    passing: Passing,
) -> None:
    passing.run("", retry=RetryPolicy(initial_delay=600))
    passing.wait_for(IN_OTHERS, BEFORE)
    assert passing.lag >= len(BEHIND)


def test_an_output_without_permission_stops_its_own_partition_until_that_is_given(
    secure: SecureKafka, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PENALTY", 0.5)
    closed, mine = f"closed-{unique}", f"{unique}-"
    secure.set_password(unique, "s3cret")
    for rights in (DECLARE, CONSUME, PUBLISH, TRANSACT):
        secure.allow(rights, user=unique, topics=[mine], groups=["passing"])
    # It may see the topic, so that only the transaction shows that it may not write.
    secure.allow(DECLARE, user=unique, topics=[closed])
    url = secure.url_of(unique, "s3cret", "session_timeout=6")
    with closing(Passing(url, secure.bootstrap, unique, tmp_path)) as passing:
        passing.mq.topic(closed, int, partitions=1)
        passing.mq.declare()
        passing.run(closed)
        passing.wait_for(IN_OTHERS, BEFORE)
        secure.allow(PUBLISH, user=unique, topics=[closed])
        passing.wait_for(IN_OTHERS, BEFORE, BEHIND)
        assert passing.stored(closed) == [b"5"]
