"""What ``TransactionalSubscription`` promises. Needs the capability ``transactions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeAlias, cast

import pytest

from reliable_mq.adapter import (
    Adapter,
    Handled,
    Received,
    Refused,
    TransactionalAdapter,
    TransactionalSubscription,
    Unroutable,
)
from reliable_mq.errors import StaleDeliveryError, TransportError
from reliable_mq.testing.contract.base import (
    GROUP,
    ContextFactory,
    ContractBase,
    Declare,
    OpenReader,
    fresh_name,
    require_capability,
    send,
)
from reliable_mq.testing.contract.messages import (
    message,
    numbered,
    numbers_of,
    one_key_per_partition,
)
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for

OpenTransactional: TypeAlias = Callable[[str], tuple[Reader, TransactionalSubscription]]


PREFETCH = 50


class TransactContract(ContractBase):
    """Outputs and the end of their deliveries: both or neither."""

    @pytest.fixture
    def transactional(self, adapter: Adapter, resources: ExitStack) -> OpenTransactional:
        """Return the function that subscribes with transactions."""
        require_capability(adapter, "transactions")

        def make(topic: str) -> tuple[Reader, TransactionalSubscription]:
            opened = cast(TransactionalAdapter, adapter)
            subscription = opened.subscribe_transactional([topic], GROUP, prefetch=PREFETCH)
            reader = Reader(subscription, quiet=self.quiet)
            resources.callback(reader.close)
            wait_for(lambda: _is_served(reader), "a coordinator of transactions")
            return reader, subscription

        return make

    def test_outputs_come_with_the_end_of_their_deliveries(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        transactional: OpenTransactional,
    ) -> None:
        source, target = declare(partitions=1), declare(partitions=1)
        send(adapter, numbered(source, range(10)))
        consumer, subscription = transactional(source)
        taken = consumer.take(10)
        assert subscription.commit(_copied(taken[:6], target)) == {}
        consumer.close()
        assert numbers_of(reader(target).take_only(6)) == list(range(6))
        heir, _ = transactional(source)
        assert numbers_of(heir.take_only(4)) == list(range(6, 10))

    def test_what_was_not_committed_leaves_no_output_and_comes_again(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        transactional: OpenTransactional,
    ) -> None:
        source, target = declare(partitions=1), declare(partitions=1)
        send(adapter, numbered(source, range(10)))
        consumer, subscription = transactional(source)
        taken = consumer.take(10)
        subscription.release(taken[4:])
        consumer.wait_until_lost(taken[4])
        with pytest.raises(StaleDeliveryError):
            subscription.commit(_copied(taken, target))
        consumer.close()
        heir, _ = transactional(source)
        assert numbers_of(heir.take(10)) == list(range(10))
        reader(target).assert_nothing_more()

    def test_an_output_that_is_refused_keeps_everything_from_being_committed(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        context: ContextFactory,
        transactional: OpenTransactional,
    ) -> None:
        source, target = declare(partitions=1), declare(partitions=1)
        send(adapter, numbered(source, range(3)))
        consumer, subscription = transactional(source)
        handled = _copied(consumer.take(3), target)
        large = message(target, bytes(2 * context().max_message_bytes))
        refused = subscription.commit([handled[0], Handled(handled[1].delivery, [large])])
        assert list(refused) == [1]
        assert isinstance(refused[1], Refused)
        consumer.close()
        heir, _ = transactional(source)
        assert numbers_of(heir.take_only(3)) == [0, 1, 2]
        reader(target).assert_nothing_more()

    def test_an_output_without_a_topic_is_named_and_the_others_can_be_committed(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        transactional: OpenTransactional,
    ) -> None:
        source, target, nowhere = declare(partitions=1), declare(partitions=1), fresh_name("none")
        send(adapter, numbered(source, range(3)))
        consumer, subscription = transactional(source)
        taken = consumer.take(3)
        first, (second,), (third,) = (
            _copied(taken[:1], target),
            _copied(taken[1:2], nowhere),
            _copied(taken[2:], target),
        )
        homeless = subscription.commit([*first, second, third])
        assert list(homeless) == [1]
        assert isinstance(homeless[1], Unroutable)
        assert subscription.commit(first) == {}
        consumer.close()
        assert numbers_of(reader(target).take_only(1)) == [0]
        heir, _ = transactional(source)
        assert numbers_of(heir.take_only(2)) == [1, 2]

    def test_what_is_held_back_takes_no_room_and_comes_when_it_is_wanted_again(
        self, adapter: Adapter, declare: Declare, transactional: OpenTransactional
    ) -> None:
        source = declare(partitions=2)
        stuck, other = one_key_per_partition(2)
        send(adapter, numbered(source, range(PREFETCH), key=stuck))
        consumer, subscription = transactional(source)
        (name,) = {one.partition for one in consumer.take(PREFETCH)}
        subscription.hold_back([name])
        send(adapter, numbered(source, range(PREFETCH), key=stuck))
        send(adapter, numbered(source, range(PREFETCH), key=other))
        came = consumer.take_only(PREFETCH)
        assert name not in {one.partition for one in came}
        assert subscription.commit([Handled(one) for one in came]) == {}
        subscription.hold_back([])
        subscription.commit([Handled(one) for one in consumer.held if one.partition == name])
        assert {one.partition for one in consumer.take_only(PREFETCH)} == {name}


def _is_served(reader: Reader) -> bool:
    """Tell whether the broker is ready: that it is not yet is told as an error, and no failure."""
    try:
        reader.idle()
    except TransportError:
        return False
    return True


def _copied(deliveries: Sequence[Received], topic: str) -> list[Handled]:
    return [Handled(one, [message(topic, one.raw.body, key="key")]) for one in deliveries]
