"""Transactions one at a time: who may commit, and what is left of one that may not."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from reliable_mq.adapter import (
    SENT,
    Batch,
    Handled,
    Received,
    Refused,
    TopicSpec,
    TransactionalSubscription,
    Unroutable,
)
from reliable_mq.errors import (
    StaleDeliveryError,
    TransportError,
)
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import message, numbered, numbers_of
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka import config
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.errors import error_of
from reliable_mq_kafka.membership import Membership
from reliable_mq_kafka.outputs import Homeless, Outputs
from reliable_mq_kafka.transactional import TransactionalIntake
from reliable_mq_kafka.transactions import FencedError, InDoubtError, Transactions
from reliable_mq_kafka.txn_client import TxnClient
from tests.adapters.kafka.conftest import Declare, Open
from tests.adapters.kafka.copying import delete, read_all, settle

INPUTS = 3


class Copier:
    """A member that copies what it receives to another topic."""

    def __init__(self, adapter: KafkaAdapter, source: str, target: str, group: str) -> None:
        self.subscription: TransactionalSubscription
        self.subscription = adapter.subscribe_transactional([source], group, prefetch=100)
        self._target = target

    def receive(self, timeout: float = 0.2) -> Batch:
        """Receive once; nothing while a busy broker does not answer the new producer in time."""
        with suppress(TransportError):
            return self.subscription.receive(100, timeout)
        return Batch()

    def take(self, count: int = INPUTS) -> list[Received]:
        taken: list[Received] = []

        def enough() -> bool:
            taken.extend(self.receive().deliveries)
            return len(taken) >= count

        wait_for(enough, f"{count} deliveries")
        return taken

    def commit(self, taken: list[Received]) -> None:
        assert not self.try_to_commit(taken, [self._target] * len(taken))

    def try_to_commit(self, taken: list[Received], targets: list[str]) -> Homeless:
        """Store one output each in *targets*."""
        pairs = zip(taken, targets, strict=True)
        outputs = [Handled(one, numbered(target, numbers_of([one]))) for one, target in pairs]
        return self.subscription.commit(outputs)

    @property
    def intake(self) -> TransactionalIntake:
        found = self.subscription._intake  # type: ignore[attr-defined]
        assert isinstance(found, TransactionalIntake)
        return found

    @property
    def producer(self) -> TxnClient | None:
        found: TxnClient | None = self.subscription._transactions._client  # type: ignore[attr-defined]
        return found

    def member(self) -> Membership:
        """Return who it is, as it says with each commit."""
        return self.intake.membership([*self.intake._share])


class MakeCopier:
    """Makes members of one group of the test's own."""

    def __init__(self, open_one: Open, source: str, target: str, stack: ExitStack) -> None:
        self.source, self.target, self.group = source, target, fresh_name("group")
        self._open_one = open_one
        self._stack = stack

    def __call__(self, *, query: str = "session_timeout=6", **options: object) -> Copier:
        adapter = self._open_one(query=query, client_options=options)
        made = Copier(adapter, self.source, self.target, self.group)
        self._stack.callback(made.subscription.close)
        return made


@pytest.fixture
def copier(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, resources: ExitStack
) -> MakeCopier:
    source, target = declare(), declare()
    assert adapter.publish(numbered(source, range(INPUTS)), 60.0) == [SENT] * INPUTS
    return MakeCopier(open_one, source, target, resources)


@pytest.fixture
def place(kafka_url: str) -> str:
    return kafka_url.partition("://")[2]


def outputs(place: str, topic: str) -> list[int]:
    """Return what a reader of committed messages sees, once nothing is open."""
    settle(place, topic)
    return [int(body) for body in read_all(place, topic, "read_committed")]


# --- fencing --------------------------------------------------------------------------------------


def test_the_membership_is_that_of_the_client(copier: MakeCopier) -> None:
    owner = copier()
    owner.take()
    found = owner.member()
    assert found.member == owner.intake._consumer.memberid()
    assert found.generation > 0


def lapsed(copier: MakeCopier) -> tuple[Copier, list[Received], Membership]:
    """Return a member that will be out of the group unless it is served, with what it holds."""
    asleep = copier(query="session_timeout=6", **{"max.poll.interval.ms": 6000})
    taken = asleep.take()
    return asleep, taken, asleep.member()


def run(copier: Copier, target: str, source: str, member: Membership) -> None:
    """Store outputs and the end of the inputs as *member*, past every check of ours."""
    clients = copier.subscription._clients  # type: ignore[attr-defined]
    transactions = Transactions(clients, fresh_name("transactions"))
    end = [TopicPartition(source, 0, INPUTS)]
    try:
        assert not transactions.run(numbered(target, range(INPUTS)), end, member)
    finally:
        transactions.close()


def test_a_replaced_member_commits_nothing_before_and_after_its_heir_does(
    copier: MakeCopier, place: str
) -> None:
    asleep, taken, _ = lapsed(copier)
    heir = copier()
    again = heir.take()
    assert numbers_of(again) == numbers_of(taken)
    with pytest.raises((StaleDeliveryError, TransportError)):
        asleep.commit(taken)
    heir.commit(again)
    with pytest.raises((StaleDeliveryError, TransportError)):
        asleep.commit(taken)
    assert outputs(place, copier.target) == list(range(INPUTS))


def test_the_brokers_themselves_refuse_a_replaced_member_and_undo_its_outputs(
    copier: MakeCopier, place: str
) -> None:
    _, _, stale = lapsed(copier)
    heir = copier()
    heir.take()
    with pytest.raises(FencedError):
        run(heir, copier.target, copier.source, stale)
    assert outputs(place, copier.target) == []
    assert len(read_all(place, copier.target, "read_uncommitted")) == INPUTS
    # The same as the present owner: it was the member that was refused, nothing else.
    run(heir, copier.target, copier.source, heir.member())
    assert outputs(place, copier.target) == list(range(INPUTS))


def test_of_two_members_with_one_static_id_only_the_younger_commits(
    copier: MakeCopier, place: str
) -> None:
    query = "session_timeout=30&static_id=one"
    elder = copier(query=query)
    elder.take()
    stale = elder.member()
    younger = copier(query=query)
    again = younger.take()
    with pytest.raises(FencedError):
        run(younger, copier.target, copier.source, stale)
    younger.commit(again)
    assert outputs(place, copier.target) == list(range(INPUTS))


def test_a_producer_that_takes_the_place_of_another_undoes_what_that_one_left(
    copier: MakeCopier, place: str
) -> None:
    owner = copier()
    owner.take()
    clients = owner.subscription._clients  # type: ignore[attr-defined]
    name = fresh_name("transactions")
    left, successor = Transactions(clients, name), Transactions(clients, name)
    left.prepare(30.0)
    client = left._client
    assert client is not None
    client.producer.begin_transaction()
    Outputs(client, numbered(copier.target, [99])).send(time.monotonic() + 30.0)
    successor.prepare(30.0)
    with pytest.raises(KafkaException):
        client.producer.commit_transaction(30)
    assert outputs(place, copier.target) == []
    end = [TopicPartition(copier.source, 0, INPUTS)]
    assert not successor.run(numbered(copier.target, [1]), end, owner.member())
    assert outputs(place, copier.target) == [1]
    left.close()
    successor.close()


def test_offsets_that_the_client_does_not_return_from_are_undone_and_stored_by_a_new_producer(
    copier: MakeCopier, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    class Stuck(Producer):
        """As it is for minutes while the group's coordinator is away (librdkafka #5456)."""

        polls = 0

        def send_offsets_to_transaction(self, *args: object) -> None:
            go_on.wait()

        def poll(self, *args: object) -> int:
            Stuck.polls += 1
            return super().poll(*args)  # type: ignore[arg-type]

    owner = copier(query="session_timeout=6&transaction_timeout=5")
    owner.take()
    clients = owner.subscription._clients  # type: ignore[attr-defined]
    transactions = Transactions(clients, fresh_name("transactions"))
    end = [TopicPartition(copier.source, 0, INPUTS)]
    attempt = partial(transactions.run, numbered(copier.target, range(INPUTS)), end, owner.member())
    with monkeypatch.context() as patch:
        patch.setattr(config, "Producer", Stuck)
        with pytest.raises(TransportError, match="not answered"):
            attempt()

    def stored() -> bool:
        # Until what the first one left is undone, a busy broker may not answer in time: then
        # nothing was stored.
        with suppress(TransportError):
            return not attempt()
        return False

    wait_for(stored, "the end of the transaction")
    # What the stuck client has to say does not pile up.
    before = Stuck.polls
    transactions.serve()
    assert Stuck.polls > before
    go_on.set()

    def is_forgotten() -> bool:
        transactions.serve()
        return not transactions._stuck

    wait_for(is_forgotten, "the end of the call")
    transactions.close()
    assert outputs(place, copier.target) == list(range(INPUTS))


def once_to_produce() -> type[Producer]:
    trouble = [ValueError("unforeseen")]

    class Fails(Producer):
        def produce(self, *args: Any, **options: Any) -> None:
            for error in trouble:
                trouble.clear()
                raise error
            super().produce(*args, **options)

    return Fails


def once_to_send_offsets() -> type[Producer]:
    trouble = [RuntimeError("unforeseen")]

    class Fails(Producer):
        def send_offsets_to_transaction(self, *args: Any) -> None:
            super().send_offsets_to_transaction(*args)
            for error in trouble:
                trouble.clear()
                raise error

    return Fails


@pytest.mark.parametrize("fails", [once_to_produce, once_to_send_offsets])
def test_what_nobody_foresees_before_the_commit_is_undone_and_stored_by_a_new_producer(
    copier: MakeCopier,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[[], type[Producer]],
) -> None:
    monkeypatch.setattr(config, "Producer", fails())
    owner = copier()
    taken = owner.take()
    first = owner.producer
    with pytest.raises(TransportError, match="unforeseen"):
        owner.commit(taken)
    assert not owner.intake.broken
    owner.commit(taken)
    assert owner.producer is not first
    assert outputs(place, copier.target) == list(range(INPUTS))


class FailsOnceCommitted(Producer):
    def commit_transaction(self, *args: object) -> None:
        super().commit_transaction(*args)  # type: ignore[arg-type]
        raise RuntimeError("unforeseen")

    def purge(self, *args: object) -> None:
        raise RuntimeError("gone")


def test_what_nobody_foresees_from_the_commit_leaves_it_to_the_brokers_what_is_stored(
    copier: MakeCopier, adapter: KafkaAdapter, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(config, "Producer", FailsOnceCommitted)
        owner = copier()
        taken = owner.take()
        with pytest.raises(TransportError, match="is not known"):
            owner.commit(taken)
    (lost,) = wait_for(lambda: owner.receive(0.0).lost, "the loss of the partition")
    assert (lost.partition, lost.epoch) == (taken[0].partition, taken[0].epoch)
    assert adapter.publish(numbered(copier.source, [INPUTS]), 60.0) == [SENT]
    assert numbers_of(owner.take(1)) == [INPUTS]
    assert outputs(place, copier.target) == list(range(INPUTS))


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Producer]:
    """All that are made and still there."""
    found: weakref.WeakSet[Producer] = weakref.WeakSet()

    class Noted(Producer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            found.add(self)

    monkeypatch.setattr(config, "Producer", Noted)
    return found


def test_no_producer_outlives_its_failure(
    copier: MakeCopier, producers: weakref.WeakSet[Producer]
) -> None:
    owner = copier()
    owner.take()
    clients = owner.subscription._clients  # type: ignore[attr-defined]
    name = fresh_name("transactions")
    rivals = Transactions(clients, name), Transactions(clients, name)
    for rival in rivals:
        rival.prepare(30.0)
    end = [TopicPartition(copier.source, 0, INPUTS)]
    attempt = partial(rivals[0].run, numbered(copier.target, [0]), end, owner.member())
    for _ in range(3):
        # The other one has fenced it off, which ends its producer; the next fences that one off.
        with pytest.raises((TransportError, InDoubtError)):
            attempt()
        rivals[1]._drop()
        rivals[1].prepare(30.0)
    for rival in rivals:
        rival.close()
    owner.subscription.close()
    del rival, rivals, attempt, owner
    gc.collect()
    wait_for(lambda: not producers, "the end of the producers")


# --- outputs that have no place -------------------------------------------------------------------


def assert_homeless(found: Homeless, positions: set[int], topic: str) -> None:
    assert found.keys() == positions
    for outcome in found.values():
        assert isinstance(outcome, Unroutable)
        assert topic in outcome.cause
        assert "declare" in outcome.cause


def test_an_output_without_a_topic_is_named_and_nothing_is_stored_until_the_topic_is_there(
    copier: MakeCopier, adapter: KafkaAdapter, place: str
) -> None:
    owner = copier()
    taken = owner.take()
    later = fresh_name("later")
    targets = [copier.target, later, copier.target]
    for _ in range(2):
        assert_homeless(owner.try_to_commit(taken, targets), {1}, later)
        assert adapter.lag(copier.source, copier.group) == INPUTS
        assert outputs(place, copier.target) == []
    adapter.declare([TopicSpec(name=later)], [])
    assert not owner.try_to_commit(taken, targets)
    assert (outputs(place, copier.target), outputs(place, later)) == ([0, 2], [1])
    assert adapter.lag(copier.source, copier.group) == 0


def rank(topic: str) -> int:
    """Return where the coordinator's answer has *topic*: it stems from a ``HashMap`` of Java's."""
    value = 0
    for letter in topic:
        value = (31 * value + ord(letter)) & 0xFFFFFFFF
    return (value ^ value >> 16) & 15


def gone_and_kept(*, gone_first: bool) -> tuple[str, str]:
    while True:
        gone, kept = fresh_name("gone"), fresh_name("kept")
        if rank(gone) != rank(kept) and (rank(gone) < rank(kept)) == gone_first:
            return gone, kept


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The client's errors for which transactions were undone; None where single messages failed."""
    found: list[int | None] = []
    undo = Transactions._undo

    def note(
        one: Transactions, client: TxnClient, outputs: Outputs, error: Exception | None
    ) -> Homeless:
        found.append(None if error is None else error_of(error).code())
        return undo(one, client, outputs, error)

    monkeypatch.setattr(Transactions, "_undo", note)
    return found


@pytest.mark.parametrize(
    ("gone_first", "told", "timeout"),
    [(True, KafkaError._TIMED_OUT, 3), (False, KafkaError.UNKNOWN_TOPIC_OR_PART, 30)],
    ids=["tried_until_the_time_is_up", "undone_at_once"],
)
def test_an_output_whose_topic_was_deleted_meanwhile_is_named_and_stored_once_it_is_back(
    copier: MakeCopier,
    adapter: KafkaAdapter,
    place: str,
    undone: list[int | None],
    *,
    gone_first: bool,
    told: int,
    timeout: int,
) -> None:
    owner = copier(query=f"session_timeout=6&transaction_timeout={timeout}")
    taken = owner.take()
    # The client tries a partition again that the coordinator does not know, unless one that was
    # not attempted because of it comes before it in the answer.
    gone, kept = gone_and_kept(gone_first=gone_first)
    adapter.declare([TopicSpec(name=gone), TopicSpec(name=kept)], [])
    both = [*numbered(gone, [0]), *numbered(kept, [0])]
    assert not owner.subscription.commit([Handled(taken[0], both)])
    delete(place, gone)
    assert_homeless(owner.try_to_commit(taken[1:], [gone, kept]), {0}, gone)
    assert undone == [told]
    assert outputs(place, kept) == [0]
    adapter.declare([TopicSpec(name=gone)], [])
    assert not owner.try_to_commit(taken[1:], [gone, kept])
    assert (outputs(place, gone), outputs(place, kept)) == ([1], [0, 2])


def test_of_several_outputs_the_one_that_does_not_fit_is_named_and_none_is_stored(
    copier: MakeCopier, declare: Declare, adapter: KafkaAdapter, place: str
) -> None:
    narrow = declare(options={"max.message.bytes": 1000})
    owner = copier()
    taken = owner.take()
    bodies = [b"1", b"x" * 5000, b"3"]
    handled = [
        Handled(one, [message(narrow, body)]) for one, body in zip(taken, bodies, strict=True)
    ]
    refused = owner.subscription.commit(handled)
    assert refused.keys() == {1}
    assert isinstance(refused[1], Refused)
    assert "max.message.bytes" in refused[1].cause
    assert read_all(place, narrow, "read_committed") == []
    assert adapter.lag(copier.source, copier.group) == INPUTS
    assert not owner.subscription.commit([handled[0], Handled(taken[1]), handled[2]])
    settle(place, narrow)
    assert read_all(place, narrow, "read_committed") == [b"1", b"3"]
