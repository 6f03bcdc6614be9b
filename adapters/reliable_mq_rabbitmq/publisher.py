"""Publishing for any number of threads: from messages to outcomes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from functools import lru_cache

from reliable_mq.adapter import AdapterContext, Outcome, Refused, Unknown, Unroutable
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq_rabbitmq import messages as content
from reliable_mq_rabbitmq.client import publish_method
from reliable_mq_rabbitmq.connection import Link
from reliable_mq_rabbitmq.options import Options
from reliable_mq_rabbitmq.publishing import PublishingConnection
from reliable_mq_rabbitmq.runs import NOT_SENT, Item, Run
from reliable_mq_rabbitmq.topology import layout_of

_publish_method = lru_cache(maxsize=4096)(publish_method)


class Publisher:
    """Sends messages on one connection, which it makes at the first need and after each loss."""

    def __init__(self, options: Options, context: AdapterContext) -> None:
        self._window = options.confirm_window
        self._context = context
        self._turns: dict[str, Iterator[int]] = {}
        name = f"reliable-mq publisher {context.instance}"
        self._link = Link(lambda: PublishingConnection(options, name))

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Return one outcome each, in the order of *messages*, within *timeout* seconds.

        A message without an outcome by then is ``Unknown``; its channel is closed, and a later
        call sends nothing before that is certain, so that nothing of this one comes after it.
        """
        deadline = time.monotonic() + timeout
        outcomes: list[Outcome | None] = [None] * len(messages)
        lanes = self._lanes(messages, outcomes)
        rest = self._send(lanes, outcomes, deadline) if lanes.heads else None
        return [outcome or rest or NOT_SENT for outcome in list(outcomes)]

    def close(self) -> None:
        """End the connection; what is under way ends as ``Unknown``."""
        self._link.close()

    # --- from messages to items ---

    def _lanes(self, messages: Sequence[Message], outcomes: list[Outcome | None]) -> _Lanes:
        lanes = _Lanes()
        for index, message in enumerate(messages):
            if lanes.stopped(message):
                outcomes[index] = NOT_SENT
                continue
            made = self._item(index, message)
            if isinstance(made, Refused):
                outcomes[index] = made
                lanes.stop(message)
            else:
                lanes.add(message, made)
        return lanes

    def _item(self, index: int, message: Message) -> Item | Refused:
        limit = self._context.max_message_bytes
        if len(message.body) > limit:
            return Refused(f"the body has {len(message.body)} bytes, the limit is {limit}")
        try:
            routing_key = self._routing_key(message)
            return Item(
                index=index,
                message_id=message.id,
                routing_key=routing_key,
                method=_publish_method(message.topic, routing_key),
                properties=content.encode(message),
                body=message.body,
            )
        except ValueError as error:
            return Refused(str(error))

    def _routing_key(self, message: Message) -> str:
        layout = layout_of(message.topic, self._context.topics)
        if layout.partitions == 1:
            return layout.routing_key(0)
        if message.key is not None:
            return layout.routing_key(partition_for(message.key.encode(), layout.partitions))
        turn = next(self._turns.setdefault(message.topic, itertools.count()))
        return layout.routing_key(turn % layout.partitions)

    # --- sending ---

    def _send(self, lanes: _Lanes, outcomes: list[Outcome | None], deadline: float) -> Outcome:
        """Send what is in *lanes*; return the outcome of all that has none."""
        try:
            connection = self._link.connection(deadline - time.monotonic())
            if not connection.wait_until_clear(deadline - time.monotonic()):
                return Unknown(f"not sent: {_busy(connection)}")
            return self._run(connection, lanes, outcomes, deadline)
        except ConfigurationError as error:
            return Unroutable(str(error))
        except TransportError as error:
            return Unknown(str(error))

    def _run(
        self,
        connection: PublishingConnection,
        lanes: _Lanes,
        outcomes: list[Outcome | None],
        deadline: float,
    ) -> Outcome:
        runs = [
            Run(items, window=self._window, settle=outcomes.__setitem__)
            for items in lanes.heads.values()
        ]
        try:
            connection.launch(runs).result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            connection.abandon(runs)
            return Unknown(connection.blocked or "RabbitMQ did not confirm in time")
        return NOT_SENT


class _Lanes:
    """The items of one call: by topic those that may be sent at once, the later ones behind them.

    Nothing of a key is added any more after it was stopped.
    """

    def __init__(self) -> None:
        self.heads: dict[str, list[Item]] = {}
        self._last: dict[tuple[str, str], Item] = {}
        self._stopped: set[tuple[str, str | None]] = set()

    def stopped(self, message: Message) -> bool:
        """Tell whether an earlier message of the key is not going to be stored."""
        return bool(self._stopped) and (message.topic, message.key) in self._stopped

    def stop(self, message: Message) -> None:
        """Let nothing after *message* be added for its key."""
        if message.key is not None:
            self._stopped.add((message.topic, message.key))

    def add(self, message: Message, item: Item) -> None:
        """Add an item behind the last one of its key."""
        before = None
        if message.key is not None:
            lane = (message.topic, message.key)
            before, self._last[lane] = self._last.get(lane), item
        if before is None:
            self.heads.setdefault(message.topic, []).append(item)
        else:
            before.follower = item


def _busy(connection: PublishingConnection) -> str:
    return connection.blocked or "an earlier publish is still being given up"
