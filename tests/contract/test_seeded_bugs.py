"""The contract suite must catch what it is there to catch: one broken memory broker a test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import NamedTuple

import pytest

from reliable_mq.adapter import SENT, Refused
from reliable_mq.testing.contract import readers, waiting
from reliable_mq.testing.memory import adapter, broker, logs

_ROOT = Path(__file__).parents[2]
_NAMES = {
    "adapter": adapter,
    "broker": broker,
    "logs": logs,
    "socket": socket,
    "threading": threading,
    "SENT": SENT,
    "Refused": Refused,
}


class Bug(NamedTuple):
    """A patch of the memory broker, and the contract test that must fail with it."""

    patch: str
    caught_by: str


BUGS = {
    "an ack commits all that came before": Bug(
        """
        def ack(self, offset):
            self.committed = max(self.committed, offset + 1)
        logs.Cursor.ack = ack
        """,
        "ack_of_a_later_delivery_leaves_an_earlier_one",
    ),
    "an ack is forgotten": Bug(
        "logs.Cursor.ack = lambda self, offset: None",
        "without_faults_everything_is_received_once",
    ),
    "acks of a lost ownership count": Bug(
        """
        def ack(member, delivery):
            member.owned[delivery.partition].ack(delivery.receipt)
        logs.Logs.ack = staticmethod(ack)
        """,
        "acks_of_a_released_ownership_are_ignored",
    ),
    "release does nothing": Bug(
        "broker.MemoryBroker.release = lambda self, member, deliveries: None",
        "release_in_the_middle_starts_the_stream_again",
    ),
    "release keeps the epoch": Bug(
        """
        def give(self, owner):
            self.owner, self.position = owner, self.committed
            self.acked.clear()
        logs.Cursor.give = give
        """,
        "release_on_a_log_gives_back_the_whole_ownership",
    ),
    "close keeps the partitions": Bug(
        "adapter.MemorySubscription.close = lambda self: None",
        "what_was_not_acknowledged_comes_again_after_close",
    ),
    "a new owner goes on where the old one stopped reading": Bug(
        """
        def give(self, owner):
            self.owner, self.epoch = owner, self.epoch + 1
        logs.Cursor.give = give
        """,
        "close_hands_over_from_the_first_unacknowledged",
    ),
    "members never share": Bug(
        "logs.Logs._cut = staticmethod(lambda cursors, members: None)",
        "members_own_equal_shares",
    ),
    "two members own one partition": Bug(
        """
        take = logs.Logs.take
        def take_from_all(self, member, limit):
            for name in member.topics:
                for index, cursor in enumerate(self.topic(name).cursors(member.group)):
                    copy = logs.Cursor(cursor.log, epoch=1, owner=member)
                    member.owned.setdefault(f"{name}/{index}", copy)
            return take(self, member, limit)
        logs.Logs.take = take_from_all
        """,
        "members_of_a_group_share_without_overlap",
    ),
    "a partition is read backwards": Bug(
        """
        take = logs.Logs.take
        def take_reversed(self, member, limit):
            batch = take(self, member, limit)
            return logs.Batch(list(reversed(batch.deliveries)), batch.lost)
        logs.Logs.take = take_reversed
        """,
        "a_partition_is_delivered_in_the_order_of_its_publishes",
    ),
    "another hash": Bug(
        "logs.partition_for = lambda key, partitions: len(key) % partitions",
        "every_publisher_puts_a_key_into_the_same_partition",
    ),
    "messages without a key go to one partition": Bug(
        """
        append = logs.Topic.append
        def to_the_first(self, entry):
            self.without_key = 0
            append(self, entry)
        logs.Topic.append = to_the_first
        """,
        "messages_without_a_key_are_spread",
    ),
    "prefetch is ignored": Bug(
        """
        receive = adapter.MemorySubscription.receive
        def greedy(self, limit, timeout):
            self._member.prefetch = 10_000
            return receive(self, limit, timeout)
        adapter.MemorySubscription.receive = greedy
        """,
        "no_more_than_prefetch_are_unacknowledged",
    ),
    "limit 0 delivers": Bug(
        """
        receive = adapter.MemorySubscription.receive
        adapter.MemorySubscription.receive = lambda self, n, timeout: receive(self, n or 1, timeout)
        """,
        "receive_with_limit_0_delivers_nothing",
    ),
    "everything is delivered twice": Bug(
        """
        init = broker.MemoryBroker.__init__
        def twice(self):
            init(self)
            self._copies = 2
        broker.MemoryBroker.__init__ = twice
        """,
        "without_faults_everything_is_received_once",
    ),
    "lag forgets what is delivered": Bug(
        "logs.Cursor.lag = property(lambda self: len(self.log) - self.position)",
        "lag_counts_what_is_not_acknowledged",
    ),
    "a group starts at the end": Bug(
        """
        init = logs.Cursor.__init__
        def at_the_end(self, log):
            init(self, log, committed=len(log))
        logs.Cursor.__init__ = at_the_end
        """,
        "a_group_that_appears_later_starts_at_the_earliest",
    ),
    "all groups are one": Bug(
        """
        declare = logs.Logs.declare
        def one_group(self, topics, groups):
            declare(self, topics, groups)
            for topic in self._topics.values():
                topic.groups = dict.fromkeys(topic.groups, next(iter(topic.groups.values())))
        logs.Logs.declare = one_group
        """,
        "two_groups_receive_everything_each",
    ),
    "what follows a refused message is stored": Bug(
        """
        publish = broker.MemoryBroker._publish_one
        def unblocked(self, message, limit, blocked):
            return publish(self, message, limit, set())
        broker.MemoryBroker._publish_one = unblocked
        """,
        "what_follows_a_refused_message_of_its_key_is_not_stored",
    ),
    "an oversize message is cut and sent": Bug(
        """
        publish = broker.MemoryBroker.publish
        broker.MemoryBroker.publish = lambda self, messages, limit: publish(self, messages, 10**9)
        """,
        "an_oversize_message_is_refused",
    ),
    "a topic nobody declared swallows messages": Bug(
        """
        decide = broker.MemoryBroker._decide
        def swallow(self, message, limit, blocked):
            known = message.topic in self._logs
            return decide(self, message, limit, blocked) if known else (SENT, False)
        broker.MemoryBroker._decide = swallow
        """,
        "a_message_to_a_topic_nobody_declared_is_unroutable",
    ),
    "outcomes in another order": Bug(
        """
        publish = adapter.MemoryAdapter.publish
        adapter.MemoryAdapter.publish = lambda self, m, t: sorted(publish(self, m, t), key=repr)
        """,
        "outcomes_stand_in_the_order_of_their_messages",
    ),
    "empty header values vanish": Bug(
        """
        encode = broker.wire.encode_headers
        def without_empty(message, *, native=()):
            return [pair for pair in encode(message, native=native) if pair[1]]
        broker.wire = type("wire", (), {"encode_headers": staticmethod(without_empty)})
        """,
        "a_confirmed_message_arrives_whole",
    ),
    "what is unknown is stored when the broker is back": Bug(
        """
        publish, up = broker.MemoryBroker.publish, broker.MemoryBroker.up
        def keep(self, messages, limit):
            if self._is_down:
                self.kept = list(messages)
            return publish(self, messages, limit)
        def deliver_late(self):
            up(self)
            publish(self, self.__dict__.pop("kept", []), 10**9)
        broker.MemoryBroker.publish, broker.MemoryBroker.up = keep, deliver_late
        """,
        "a_publish_to_a_dead_broker_is_unknown_in_time_and_arrives_once",
    ),
    "a dead broker refuses for good": Bug(
        """
        decide = broker.MemoryBroker._decide
        def refuse(self, *rest):
            return (Refused("down"), False) if self._is_down else decide(self, *rest)
        broker.MemoryBroker._decide = refuse
        """,
        "a_publish_to_a_dead_broker_is_unknown_in_time",
    ),
    "declare changes the number of partitions": Bug(
        """
        def overwrite(self, spec):
            partitions = [[] for _ in range(spec.partitions or 1)]
            self._topics[spec.name] = logs.Topic(spec.name, partitions)
        logs.Logs._declare_topic = overwrite
        """,
        "declare_with_another_number_of_partitions",
    ),
    "a publish after close raises": Bug(
        """
        publish = adapter.MemoryAdapter.publish
        def raise_when_closed(self, messages, timeout):
            if self._closed:
                raise RuntimeError("closed")
            return publish(self, messages, timeout)
        adapter.MemoryAdapter.publish = raise_when_closed
        """,
        "close_amid_publishes_leaves_none_of_them_without_its_outcome",
    ),
    "no body becomes the word null": Bug(
        """
        entry = broker.Entry
        broker.Entry = lambda body, *rest: entry(body or b"null", *rest)
        """,
        "a_foreign_message_without_a_body_has_an_empty_one",
    ),
    "a member with something in flight gets nothing more": Bug(
        """
        take = logs.Logs.take
        def one_after_the_other(self, member, limit):
            flying = any(one.position > one.committed for one in member.owned.values())
            return take(self, member, 0 if flying else limit)
        logs.Logs.take = one_after_the_other
        """,
        "a_partition_that_is_held_up_does_not_hold_up_the_others",
    ),
    "balance goes on where the old owner stopped reading": Bug(
        """
        def give(self, owner):
            self.owner, self.epoch = owner, self.epoch + 1
        logs.Cursor.give = give
        """,
        "a_second_member_gets_its_share_without_a_gap",
    ),
    "a subscription that failed once stays broken": Bug(
        """
        receive = adapter.MemorySubscription.receive
        def broken_for_good(self, limit, timeout):
            if self.__dict__.get("broken"):
                raise adapter.TransportError("broken")
            self.broken = True
            batch = receive(self, limit, timeout)
            self.broken = False
            return batch
        adapter.MemorySubscription.receive = broken_for_good
        """,
        "a_subscription_goes_on_after_a_broker_that_was_stopped",
    ),
    "outputs are stored although one of them is refused": Bug(
        """
        homeless = broker.MemoryBroker._homeless_outputs
        def too_late(self, handled, limit):
            for message in (message for one in handled for message in one.outputs):
                self._store(message)
            return homeless(self, handled, limit)
        broker.MemoryBroker._homeless_outputs = too_late
        """,
        "an_output_that_is_refused_keeps_everything_from_being_committed",
    ),
    "all outputs of a transaction are told to have no topic where one has none": Bug(
        """
        homeless = broker.MemoryBroker._homeless_outputs
        def too_many(self, handled, limit):
            found = homeless(self, handled, limit)
            return {i: next(iter(found.values())) for i in range(len(handled))} if found else {}
        broker.MemoryBroker._homeless_outputs = too_many
        """,
        "an_output_without_a_topic_is_named_and_the_others_can_be_committed",
    ),
    "what is held back is read and takes the room of others": Bug(
        """
        broker.MemoryBroker.hold_back = lambda self, member, partitions: None
        """,
        "what_is_held_back_takes_no_room_and_comes_when_it_is_wanted_again",
    ),
    "outputs of a lost ownership are stored": Bug(
        """
        broker._epoch = lambda owned, partition: 1
        """,
        "what_was_not_committed_leaves_no_output_and_comes_again",
    ),
    "outputs without the end of their deliveries": Bug(
        """
        ack = logs.Logs.ack
        commit = broker.MemoryBroker.commit
        def without_acks(self, member, handled, limit):
            logs.Logs.ack = staticmethod(lambda member, delivery: None)
            return commit(self, member, handled, limit)
        broker.MemoryBroker.commit = without_acks
        """,
        "outputs_come_with_the_end_of_their_deliveries",
    ),
    "a socket stays behind": Bug(
        """
        left = []
        subscribe = adapter.MemoryAdapter.subscribe
        def with_a_socket(self, *arguments, **options):
            left.append(socket.socket().detach())
            return subscribe(self, *arguments, **options)
        adapter.MemoryAdapter.subscribe = with_a_socket
        """,
        "opening_and_closing_again_and_again_leaves_no_socket_behind",
    ),
    "a thread stays behind": Bug(
        """
        subscribe = adapter.MemoryAdapter.subscribe
        def with_a_thread(self, *arguments, **options):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            return subscribe(self, *arguments, **options)
        adapter.MemoryAdapter.subscribe = with_a_thread
        """,
        "close_is_idempotent_and_leaves_no_thread_behind",
    ),
}


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The memory broker as it is, afterwards; and short waits, for a broken one keeps nobody."""
    for function in (waiting.wait_for, readers.Reader.take):
        monkeypatch.setitem(function.__kwdefaults__ or {}, "seconds", 2.0)
    monkeypatch.setattr(waiting.Deadline.__init__, "__defaults__", (2.0,))
    modules = (logs, broker, adapter)
    classes = [c for m in modules for c in vars(m).values() if _is_class_of(m, c)]
    before = [(owner, dict(vars(owner))) for owner in (*modules, *classes)]
    yield
    for owner, attributes in before:
        for name in set(vars(owner)) - set(attributes):
            delattr(owner, name)
        for name, value in attributes.items():
            if vars(owner)[name] is not value:
                setattr(owner, name, value)


def _is_class_of(module: ModuleType, thing: object) -> bool:
    return isinstance(thing, type) and thing.__module__ == module.__name__


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_the_suite_catches_an_adapter_in_which(
    bug: Bug, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(_ROOT)
    pytester.makepyfile("from tests.contract.test_memory import TestMemoryContract")
    exec(dedent(bug.patch), {**_NAMES})  # noqa: S102 - text of this file
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", bug.caught_by)
    passed, skipped, failed = result.countoutcomes()
    assert (passed, skipped, failed) == (0, 0, 1)
