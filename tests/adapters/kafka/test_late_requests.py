"""A request that comes after its client has gone on does nothing to the next transaction.

The client sent it again meanwhile, was answered, and says nothing of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from reliable_mq.adapter import SENT
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import numbered
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.membership import Membership, membership
from reliable_mq_kafka.outputs import Outputs
from reliable_mq_kafka.transactions import FencedError, Transactions
from reliable_mq_kafka.txn_client import TxnClient
from tests.adapters.kafka.conftest import GROUP, Declare, Open
from tests.adapters.kafka.copying import read_all, settle
from tests.adapters.kafka.delaying import DelayingProxy
from tests.adapters.kafka.frames import (
    ADD_OFFSETS,
    END,
    INIT_PRODUCER_ID,
    PRODUCE,
    TXN_OFFSET_COMMIT,
)
from tests.brokers import Kafka
from tests.conftest import started

INPUTS = 3
QUERY = "session_timeout=30&connect_timeout=2&transaction_timeout=60"
UNSEEN: dict[str, object] = {"log.connection.close": False}
"""The client does not tell of connections that end."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[DelayingProxy]:
    proxy = DelayingProxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def behind(request: pytest.FixtureRequest, proxy: DelayingProxy) -> Iterator[Kafka]:
    kafka = Kafka(
        {
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy.port}",
            # As it was before Kafka 3.6: requests of a transaction that is over are not told
            # from those of an open one.
            "transaction.partition.verification.enable": "false",
        }
    )
    proxy.start(kafka.port())
    yield from started(request, kafka)


class Copier:
    """Stores an output and the offset of its input in one transaction, as a member of a group."""

    def __init__(self, adapter: KafkaAdapter, source: str, target: str) -> None:
        self._source, self._target = source, target
        self._subscription = adapter.subscribe_transactional([source], GROUP, prefetch=10)
        self._transactions = Transactions(self._subscription._clients, fresh_name("transactions"))
        wait_for(lambda: self._subscription.receive(10, 0.1).deliveries, "the inputs")

    def copy(self, number: int, member: Membership | None = None, *, partition: int = 0) -> None:
        end = [TopicPartition(self._source, partition, number + 1)]
        outputs = numbered(self._target, [number])
        assert not self._transactions.run(outputs, end, member or self.member())

    def undo(self, number: int) -> None:
        """Do the same, and undo it before the commit."""
        client = self._begin()
        Outputs(client, numbered(self._target, [number])).send(_soon(30.0))
        end = [TopicPartition(self._source, 0, number + 1)]
        self._transactions._send_offsets(client, end, self.member(), _soon(30.0))
        self._transactions._abort()

    def give_up_on(self, number: int, *, after: float) -> None:
        """Do the same until the output has had no answer for so many seconds, and undo it."""
        outputs = Outputs(self._begin(), numbered(self._target, [number]))
        with pytest.raises(KafkaException, match="not confirmed"):
            outputs.send(_soon(after))
        self._transactions._abort()

    def _begin(self) -> TxnClient:
        self._transactions.prepare(30.0)
        client = self.client()
        client.producer.begin_transaction()
        return client

    def client(self) -> TxnClient:
        """Return the one that is in use."""
        client = self._transactions._client
        assert client is not None
        return client

    def member(self) -> Membership:
        intake = self._subscription._intake
        assert intake is not None
        return membership(intake._consumer.consumer_group_metadata())

    def stranger(self) -> Membership:
        """Return one of a generation that never was."""
        member = self.member()
        true, false = ((member.generation + more).to_bytes(4, sys.byteorder) for more in (0, 1000))
        return replace(member, metadata=member.metadata.replace(true, false, 1))

    def close(self) -> None:
        self._transactions.close()
        self._subscription.close()


def _soon(seconds: float) -> float:
    return time.monotonic() + seconds


class Place:
    """A topic that is copied to another one."""

    def __init__(self, behind: Kafka, open_one: Open, declare: Declare, stack: ExitStack) -> None:
        self._bootstrap = behind.bootstrap
        self._url = behind.url
        self._open_one, self._stack = open_one, stack
        adapter = open_one(behind.url)
        self._source, self.target = declare(adapter=adapter, partitions=2), declare(adapter=adapter)
        assert adapter.publish(numbered(self._source, range(INPUTS)), 60.0) == [SENT] * INPUTS

    def copier(self, options: dict[str, object] | None = None) -> Copier:
        adapter = self._open_one(self._url, query=QUERY, client_options=options)
        copier = Copier(adapter, self._source, self.target)
        self._stack.callback(copier.close)
        return copier

    def outputs(self) -> list[int]:
        settle(self._bootstrap, self.target)
        return [int(body) for body in read_all(self._bootstrap, self.target, "read_committed")]

    def committed(self, partition: int = 0) -> int:
        """Return what the group has committed, once nothing of it is open."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": GROUP})
        try:
            (found,) = consumer.committed([TopicPartition(self._source, partition)], timeout=30)
            return int(found.offset)
        finally:
            consumer.close()


@pytest.fixture
def place(behind: Kafka, open_one: Open, declare: Declare, resources: ExitStack) -> Place:
    return Place(behind, open_one, declare, resources)


interruptions = pytest.mark.parametrize("cut", [True, False], ids=["cut off", "no answer"])


@interruptions
def test_a_commit_that_comes_late_commits_no_part_of_the_next_transaction(
    proxy: DelayingProxy, place: Place, cut: bool
) -> None:
    copier = place.copier(UNSEEN)
    proxy.delay(END, until=ADD_OFFSETS, cut=cut)
    copier.copy(0)
    first = copier.client()
    copier.copy(1)
    assert proxy.arrived.is_set()
    # What follows shows it only where the brokers are slow to end the transaction.
    assert copier.client() is not first
    assert place.outputs() == [0, 1]
    assert place.committed() == 2


@interruptions
def test_an_abort_that_comes_late_undoes_no_part_of_the_next_transaction(
    proxy: DelayingProxy, place: Place, cut: bool
) -> None:
    copier = place.copier(UNSEEN)
    proxy.delay(END, until=PRODUCE, cut=cut)
    with pytest.raises(FencedError):
        copier.copy(0, copier.stranger())
    first = copier.client()
    copier.copy(1)
    assert proxy.arrived.is_set()
    assert copier.client() is not first
    assert place.outputs() == [1]
    assert place.committed() == 2


@interruptions
@pytest.mark.parametrize(
    ("until", "count"),
    [(INIT_PRODUCER_ID, 1), (TXN_OFFSET_COMMIT, 2), (TXN_OFFSET_COMMIT, 3)],
    ids=["once they are undone", "with the same again", "with those of the next transaction"],
)
def test_offsets_that_come_late_neither_lead_back_nor_keep_anybody_waiting(
    proxy: DelayingProxy, place: Place, cut: bool, until: int, count: int
) -> None:
    copier = place.copier(UNSEEN)
    proxy.delay(TXN_OFFSET_COMMIT, until, count=count, cut=cut)
    with pytest.raises(TransportError, match="connection has ended"):
        copier.copy(0)
    copier.copy(0)
    copier.copy(1)
    assert proxy.arrived.is_set()
    assert place.outputs() == [0, 1]
    # Answered once nothing of the group is open.
    assert place.committed() == 2


def test_offsets_that_come_late_are_not_committed_for_an_undone_transaction(
    proxy: DelayingProxy, place: Place
) -> None:
    copier = place.copier(UNSEEN)
    proxy.delay(TXN_OFFSET_COMMIT, until=ADD_OFFSETS, cut=True)
    copier.undo(0)
    copier.copy(0, partition=1)
    assert proxy.arrived.is_set()
    assert place.outputs() == [0]
    assert place.committed() == 0
    assert place.committed(1) == 1


def test_no_output_is_taken_for_the_copy_of_an_undone_one(
    proxy: DelayingProxy, place: Place
) -> None:
    copier = place.copier({"retry.backoff.ms": 10_000, "retry.backoff.max.ms": 10_000})
    copier.copy(0)
    proxy.doubt(place.target)
    copier.give_up_on(1, after=0.5)
    proxy.doubt(None)
    assert proxy.doubted.is_set()
    copier.copy(2)
    assert place.outputs() == [0, 2]
    assert place.committed() == 3


@pytest.mark.parametrize(
    "options", [{}, {"debug": "msg,eos"}], ids=["as it is", "with debug lines"]
)
def test_a_producer_is_kept_as_long_as_nothing_interrupts_it(
    place: Place, options: dict[str, object]
) -> None:
    copier = place.copier(options)
    copier.copy(0)
    first = copier.client()
    with pytest.raises(FencedError):
        copier.copy(1, copier.stranger())
    copier.copy(1)
    assert copier.client() is first
    assert place.outputs() == [0, 1]


def test_connections_that_end_while_the_producer_is_idle_undo_no_transaction(
    proxy: DelayingProxy, place: Place
) -> None:
    copier = place.copier()
    copier.copy(0)
    client = copier.client()
    proxy.cut()

    def has_noticed() -> bool:
        client.serve()
        return client.health.interrupted

    wait_for(has_noticed, "the end of its connections")
    # This client would not return from sending offsets in time.
    copier.copy(1)
    assert place.outputs() == [0, 1]
