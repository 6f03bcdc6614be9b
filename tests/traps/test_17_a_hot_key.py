"""Trap 17: one key with most of the messages slows the relay down to one message at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from reliable_mq import Message
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order

HOT, BATCH = 600, 100


@pytest.mark.parametrize("kind", ["sql", "redis"], indirect=True)
@pytest.mark.usefixtures("engine")
def test_trap_17_a_hot_key_fills_whole_batches_and_keeps_its_order(
    make_mq: MakeMQ, unique: str
) -> None:
    mq = make_mq(relay={"batch_size": BATCH})
    mq.topic(unique, Order)
    mq.declare()
    with mq.transaction():
        for number in range(HOT):
            mq.publish(unique, Order(id=number), key="hot", message_id=f"{number:04}")
    batches = _record_batches(mq._runtime.adapter)
    assert mq.run_until_idle(60, consume=False).sent == HOT
    assert len(batches) == HOT // BATCH
    sent = [message.id for batch in batches for message in batch]
    assert sent == sorted(sent)


def _record_batches(adapter: Any) -> list[Sequence[Message]]:
    batches: list[Sequence[Message]] = []
    publish = adapter.publish

    def recorded(messages: Sequence[Message], timeout: float) -> Any:
        batches.append(messages)
        return publish(messages, timeout)

    adapter.publish = recorded
    return batches
