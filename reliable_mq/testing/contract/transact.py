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
    TransactionalAdapter,
    TransactionalSubscription,
)
from reliable_mq.errors import StaleDeliveryError, TransportError
from reliable_mq.testing.contract.base import (
    GROUP,
    ContextFactory,
    ContractBase,
    Declare,
    OpenReader,
    require_capability,
    send,
)
from reliable_mq.testing.contract.messages import message, numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for

OpenTransactional: TypeAlias = Callable[[str], tuple[Reader, TransactionalSubscription]]


class TransactContract(ContractBase):
    """Outputs and the end of their deliveries: both or neither."""

    @pytest.fixture
    def transactional(self, adapter: Adapter, resources: ExitStack) -> OpenTransactional:
        """Return the function that subscribes with transactions."""
        require_capability(adapter, "transactions")

        def make(topic: str) -> tuple[Reader, TransactionalSubscription]:
            opened = cast(TransactionalAdapter, adapter)
            subscription = opened.subscribe_transactional([topic], GROUP, prefetch=500)
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
        consumer.close()
        heir, _ = transactional(source)
        assert numbers_of(heir.take_only(3)) == [0, 1, 2]
        reader(target).assert_nothing_more()


def _is_served(reader: Reader) -> bool:
    """Tell whether the broker is ready: that it is not yet is told as an error, and no failure."""
    try:
        reader.idle()
    except TransportError:
        return False
    return True


def _copied(deliveries: Sequence[Received], topic: str) -> list[Handled]:
    return [Handled(one, [message(topic, one.raw.body, key="key")]) for one in deliveries]
