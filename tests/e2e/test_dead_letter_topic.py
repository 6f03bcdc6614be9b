"""The copy of a dead letter on its topic, read by a handler like any other message."""

from __future__ import annotations

from sqlalchemy.orm import Session

from reliable_mq import Message, RetryPolicy
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order


def test_a_handler_reads_the_dead_letters_of_another_group_with_their_origin(
    make_mq: MakeMQ, unique: str
) -> None:
    mq = make_mq()
    got: list[Message] = []

    # Without a delay: what is due only later would not keep run_until_idle() from returning.
    @mq.handler(unique, retry=RetryPolicy(max_attempts=2, initial_delay=0))
    def handle(order: Order, session: Session) -> None:
        raise OSError("injected")

    @mq.handler(f"{unique}.billing.dlq", group="support")
    def note(message: Message) -> None:
        got.append(message)

    mq.declare()
    with mq.transaction():
        mq.publish(unique, Order(id=7), key="k", headers={"who": "shop"}, message_id="order-7")
    mq.run_until_idle(60)
    (dead,) = mq.dead_letters()
    (copy,) = got
    assert (copy.body, copy.key) == (dead.message.body, "k")
    assert copy.id != "order-7", "it is a message of its own"
    assert copy.headers["who"] == "shop"
    origin = {
        name: value for name, value in copy.headers.items() if name.startswith("reliable-mq-")
    }
    assert origin | {"reliable-mq-origin-died-at": ""} == {
        "reliable-mq-origin-id": "order-7",
        "reliable-mq-origin-topic": unique,
        "reliable-mq-origin-group": "billing",
        "reliable-mq-origin-attempts": "2",
        "reliable-mq-origin-cause": "OSError: injected",
        "reliable-mq-origin-died-at": "",
    }
