"""A consuming process that a test kills, stops and lets go on.

Run as a script with a behaviour by name. ``stop``, ``kill`` and ``kill-before-ack`` do to the
process itself, at message 1 and unless the file ``E2E_ONCE`` is there, what their names say.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, Settings
from tests.e2e.shop import Order, leave


def first_time() -> bool:
    """Tell whether this is the one time, in all processes, and note that it was."""
    try:
        Path(os.environ["E2E_ONCE"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main(behaviour: str, guarantee: Any) -> None:
    """Consume until a signal."""
    logging.basicConfig(level=logging.INFO)
    mq = ReliableMQ(Settings())

    @mq.handler(
        os.environ["E2E_TOPIC"], ordered=guarantee == "effectively-once", guarantee=guarantee
    )
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        leave(session, f"{order.id}")
        if order.id == 1 and behaviour in ("stop", "kill") and first_time():
            session.flush()
            os.kill(os.getpid(), signal.SIGSTOP if behaviour == "stop" else signal.SIGKILL)

    if behaviour == "kill-before-ack":
        die_before_the_first_ack(mq)
    mq.run()


def die_before_the_first_ack(mq: ReliableMQ) -> None:
    """Kill this process when the first handled message is about to be acknowledged."""
    adapter: Any = mq._runtime.adapter
    subscribe = adapter.subscribe

    def subscribe_and_wrap(*args: Any, **options: Any) -> Any:
        subscription = subscribe(*args, **options)
        ack = subscription.ack

        def die(deliveries: Any) -> None:
            if deliveries and first_time():
                os.kill(os.getpid(), signal.SIGKILL)
            ack(deliveries)

        subscription.ack = die
        return subscription

    adapter.subscribe = subscribe_and_wrap


if __name__ == "__main__":
    main(*sys.argv[1:])
