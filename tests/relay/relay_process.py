"""A relay in a process of its own, with a broker that is a file, for tests that kill it.

``python -m tests.relay.relay_process DATABASE_URL LOG SEED``. The broker appends the id of each
message it stores to LOG, in one unbuffered write that a SIGKILL cannot tear or undo. It is not a
good broker: of some messages it says nothing, stored or not, and some it refuses at one try.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from reliable_mq.adapter import SENT, Outcome, Refused, Sent, Unknown
from reliable_mq.message import Message
from reliable_mq.store import Store
from tests.relay.support import ADAPTER, make_relay

LEASE = 1.5


class FileBroker:
    """Total order is the order in the file, whichever process wrote."""

    name = ADAPTER

    def __init__(self, log: Path, seed: int, *, moody: bool = True) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._random = random.Random(seed)
        self._moody = moody

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        stopped: set[str | None] = set()
        outcomes: list[Outcome] = []
        for message in messages:
            outcome = self._publish_one(message) if message.key not in stopped else Unknown("")
            if not isinstance(outcome, Sent):
                stopped.add(message.key)
            outcomes.append(outcome)
        return outcomes

    def _publish_one(self, message: Message) -> Outcome:
        mood = self._random.random() if self._moody else 1.0
        if mood < 0.02:
            return Unknown("not stored")
        if mood < 0.03:
            return Refused("not today")
        os.write(self._log, f"{message.id}\n".encode())
        time.sleep(0.0005)
        return Unknown("stored") if mood < 0.06 else SENT


def main() -> None:
    url, log, seed = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    store = Store(database_url=url, adapter=ADAPTER)
    relay = make_relay(
        store,
        FileBroker(Path(log), int(seed)),
        instance=f"process-{os.getpid()}-{seed}",
        batch_size=20,
        lease=LEASE,
        publish_timeout=1.0,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print("running", flush=True)
    relay.run(stop)


if __name__ == "__main__":
    main()
