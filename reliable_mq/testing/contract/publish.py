"""What ``Adapter.publish`` promises."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

import pytest

from reliable_mq.adapter import (
    SENT,
    Adapter,
    GroupSpec,
    Outcome,
    Refused,
    Sent,
    TopicSpec,
    Unknown,
    Unroutable,
)
from reliable_mq.message import Message, new_message_id
from reliable_mq.testing.contract.base import (
    GROUP,
    PUBLISH_TIMEOUT,
    ContextFactory,
    ContractBase,
    Declare,
    OpenAnother,
    OpenReader,
    fresh_name,
    require_capability,
    send,
)
from reliable_mq.testing.contract.messages import (
    decoded,
    id_of,
    ids_of,
    message,
    number_of,
    numbered,
    numbers_of,
)
from reliable_mq.testing.contract.waiting import wait_for

GRACE = 5.0
"""Seconds a publish may return later than its timeout, on a busy machine."""


class PublishContract(ContractBase):
    """Outcomes of a publish, and what arrives of it."""

    @pytest.fixture
    def limit(self, context: ContextFactory) -> int:
        """Return the largest body in bytes that must be accepted."""
        return context().max_message_bytes

    def test_a_confirmed_message_arrives_whole(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        sent = Message(
            id="order/42 \N{SNOWMAN}",
            topic=topic,
            key="ключ",
            body=bytes(range(256)),
            headers={"plain": "text", "unicode": "naïve \N{GRINNING FACE}", "empty": ""},
            content_type="application/x-test",
            time=datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC),
        )
        send(adapter, [sent])
        arrived = decoded(reader(topic).take_only(1)[0])
        assert arrived.id == sent.id
        assert arrived.topic == sent.topic
        assert arrived.key == sent.key
        assert arrived.body == sent.body
        assert dict(arrived.headers) == dict(sent.headers)
        assert arrived.content_type == sent.content_type
        assert arrived.time == sent.time

    def test_header_values_that_are_no_text_arrive_byte_for_byte(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        require_capability(adapter, "raw_headers")
        topic = declare()
        headers: dict[str, str | bytes] = {"bytes": b"\xff\x00\xfe", "text": "text"}
        send(adapter, [Message(id=new_message_id(), topic=topic, headers=headers)])
        assert dict(decoded(reader(topic).take(1)[0]).headers) == headers

    def test_a_message_of_nothing_but_an_id_arrives_as_such(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        sent = Message(id=new_message_id(), topic=topic)
        send(adapter, [sent])
        arrived = decoded(reader(topic).take(1)[0])
        assert (arrived.id, arrived.body, arrived.key) == (sent.id, b"", None)
        assert (dict(arrived.headers), arrived.content_type) == ({}, None)

    @pytest.mark.parametrize(
        "message_id", ["x", "a" * 255, "\N{SNOWMAN}" * 85], ids=["short", "longest", "unicode"]
    )
    def test_an_id_chosen_by_the_caller_arrives_unchanged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, message_id: str
    ) -> None:
        topic = declare()
        send(adapter, [Message(id=message_id, topic=topic)])
        assert id_of(reader(topic).take(1)[0]) == message_id

    def test_a_body_of_the_largest_size_is_accepted(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, limit: int
    ) -> None:
        topic = declare()
        body = b"\xa5" * limit
        send(adapter, [message(topic, body)])
        assert reader(topic).take(1)[0].raw.body == body

    def test_an_oversize_message_is_refused_and_other_keys_are_sent(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, limit: int
    ) -> None:
        topic = declare()
        before, after = message(topic, key="before"), message(topic, key="after")
        outcomes = adapter.publish(
            [before, message(topic, bytes(2 * limit), key="large"), after], PUBLISH_TIMEOUT
        )
        assert [type(outcome) for outcome in outcomes] == [type(SENT), Refused, type(SENT)]
        assert sorted(ids_of(reader(topic).take_only(2))) == sorted([before.id, after.id])

    def test_what_follows_a_refused_message_of_its_key_is_not_stored(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, limit: int
    ) -> None:
        topic = declare()
        first, last = message(topic, b"first", key="a"), message(topic, b"last", key="a")
        refused, other = (
            message(topic, bytes(2 * limit), key="a"),
            message(topic, b"other", key="b"),
        )
        outcomes = adapter.publish([first, refused, last, other], PUBLISH_TIMEOUT)
        assert outcomes[0] == outcomes[3] == SENT
        assert isinstance(outcomes[1], Refused)
        assert outcomes[2] != SENT
        consumer = reader(topic)
        assert sorted(ids_of(consumer.take_only(2))) == sorted([first.id, other.id])
        send(adapter, [last])
        assert ids_of(consumer.take_only(1)) == [last.id]

    def test_a_message_to_a_topic_nobody_declared_is_unroutable_until_somebody_does(
        self,
        adapter: Adapter,
        declare: Declare,
        topics: dict[str, TopicSpec],
        reader: OpenReader,
    ) -> None:
        require_capability(adapter, "detects_unroutable")
        known, later = declare(), TopicSpec(name=fresh_name("contract"))
        lost, kept = message(later.name, key="k"), message(known, key="k")
        unroutable, sent = adapter.publish([lost, kept], PUBLISH_TIMEOUT)
        assert isinstance(unroutable, Unroutable)
        assert later.name in unroutable.cause
        assert sent == SENT
        topics[later.name] = later
        adapter.declare([later], [GroupSpec(topic=later.name, group=GROUP)])
        send(adapter, [lost])
        assert ids_of(reader(later.name).take_only(1)) == [lost.id]

    def test_outcomes_stand_in_the_order_of_their_messages(
        self, adapter: Adapter, declare: Declare, limit: int
    ) -> None:
        topic, other = declare(partitions=4), declare()
        batch = [
            message(
                other if index % 3 else topic,
                bytes(2 * limit) if index % 5 == 2 else b"",
                key=f"key-{index}",
            )
            for index in range(20)
        ]
        outcomes = adapter.publish(batch, PUBLISH_TIMEOUT)
        refused = [index for index, one in enumerate(outcomes) if isinstance(one, Refused)]
        sent = [index for index, one in enumerate(outcomes) if one == SENT]
        assert refused == [2, 7, 12, 17]
        assert sent == [index for index in range(20) if index % 5 != 2]

    def test_nothing_to_publish_has_no_outcomes(self, adapter: Adapter) -> None:
        assert adapter.publish([], PUBLISH_TIMEOUT) == []

    def test_a_publish_returns_as_soon_as_its_outcomes_are_known(
        self, adapter: Adapter, declare: Declare
    ) -> None:
        topic = declare()
        begin = time.monotonic()
        assert adapter.publish([message(topic)], 60.0) == [SENT]
        assert time.monotonic() - begin < 30.0

    def test_a_large_batch_arrives_in_its_order(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(1000)))
        taken = reader(topic, prefetch=1000).take_only(1000)
        assert numbers_of(taken) == list(range(1000))

    def test_publishers_on_many_threads_share_one_adapter(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic, failures = declare(partitions=4), list[BaseException]()

        def publish(key: str) -> None:
            try:
                for start in range(0, 40, 10):
                    send(adapter, numbered(topic, range(start, start + 10), key=key))
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                failures.append(error)

        threads = [threading.Thread(target=publish, args=(f"key-{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        arrived: dict[str | None, list[int]] = {}
        for delivery in reader(topic, prefetch=1000).take_only(320):
            arrived.setdefault(decoded(delivery).key, []).append(number_of(delivery))
        assert arrived == {f"key-{i}": list(range(40)) for i in range(8)}

    def test_close_amid_publishes_leaves_none_of_them_without_its_outcome(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic, closing = declare(partitions=1), another()
        outcomes, failures = list[Outcome](), list[BaseException]()

        def publish() -> None:
            try:
                while not outcomes or outcomes[-1] == SENT:
                    batch = numbered(topic, range(len(outcomes), len(outcomes) + 100))
                    outcomes.extend(closing.publish(batch, PUBLISH_TIMEOUT))
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                failures.append(error)

        thread = threading.Thread(target=publish)
        thread.start()
        wait_for(lambda: outcomes, "the first outcomes")
        closing.close()
        thread.join(2 * PUBLISH_TIMEOUT)
        assert not thread.is_alive()
        assert not failures
        assert {type(outcome) for outcome in outcomes} == {Sent, Unknown}
        confirmed = {number for number, outcome in enumerate(outcomes) if outcome == SENT}
        consumer = reader(topic, prefetch=len(outcomes))
        wait_for(
            lambda: confirmed <= set(numbers_of(consumer.received)),
            "what was confirmed",
            meanwhile=consumer.step,
        )
