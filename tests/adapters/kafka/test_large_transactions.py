"""Exactly-once transactions with more in them than the brokers can take before the time-out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reliable_mq import Message, ReliableMQ, Settings
from reliable_mq.adapter import SENT
from reliable_mq.testing.contract.messages import numbered, one_key_per_partition
from tests.adapters.kafka.copying import read_all, settle
from tests.brokers import Kafka
from tests.conftest import started
from tests.e2e.waiting import until
from tests.nemesis.proxy import Proxy, Trouble

PARTITIONS = 3
EACH = 20
OUTPUT = 100_000
"""Bytes. All outputs together are 6 MB, for which the slow network takes 9 s or more."""
TIMEOUT = 5
LATE = 0.1
"""Seconds for each chunk, of 64 KiB at most, in the slow network."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy(random.Random(1))
    yield proxy
    proxy.close()


@pytest.fixture
def distant(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Kafka]:
    """A broker whose clients come through the proxy."""
    kafka = Kafka({"advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy.port}"})
    proxy.start(kafka.port())
    yield from started(request, kafka)


def test_what_is_too_much_for_one_transaction_is_stored_by_several(
    distant: Kafka, proxy: Proxy, unique: str, tmp_path: Path
) -> None:
    url = f"{distant.url}?session_timeout=20&transaction_timeout={TIMEOUT}"
    database = f"sqlite:///{tmp_path / 'store.db'}"
    source, target = f"{unique}-in", f"{unique}-out"
    with ExitStack() as stack:
        mq = ReliableMQ(Settings(broker_url=url, database_url=database, group="large"))
        stack.callback(mq.close)
        mq.topic(source, int, partitions=PARTITIONS)
        mq.topic(target, partitions=1)

        @mq.handler(source, guarantee="exactly-once", concurrency=2)
        def enlarge(number: int, message: Message) -> None:
            mq.publish(target, message.body.ljust(OUTPUT))

        mq.declare()
        for one, key in enumerate(one_key_per_partition(PARTITIONS)):
            batch = numbered(source, range(100 * one, 100 * one + EACH), key=key)
            assert mq._runtime.adapter.publish(batch, 60.0) == [SENT] * EACH

        def outputs() -> list[int]:
            return [int(body) for body in read_all(distant.bootstrap, target, "read_committed")]

        proxy.begin(Trouble.LATENCY, share=1.0, delay=LATE)
        stack.callback(proxy.end)
        stack.enter_context(mq.running())
        until(lambda: mq.status().groups[source, "large"].lag == 0, seconds=200)
        proxy.end()
        settle(distant.bootstrap, target)
        found = outputs()
    assert sorted(found) == [
        100 * one + number for one in range(PARTITIONS) for number in range(EACH)
    ]
    for one in range(PARTITIONS):
        assert [number for number in found if number // 100 == one] == list(
            range(100 * one, 100 * one + EACH)
        )
