"""Owners of unacknowledged messages, one after the other, each of which ends by SIGKILL.

Run as ``python lost_owners.py URL TOPIC GROUP COUNT HELD``; prints a line for each that died, the
number of messages that it held. Forked, because a Python of its own takes longer than a life.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from reliable_mq.adapter import AdapterContext
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.readers import Reader


def live(url: str, topic: str, group: str, held: int, done: int) -> NoReturn:
    """Take messages, say that they are there, and wait for the end."""
    adapter = open_adapter(url, AdapterContext(instance=f"owner-{os.getpid()}"))
    reader = Reader(adapter.subscribe([topic], group, prefetch=held, ordered=True))
    reader.take(held)
    os.write(done, b"!")
    signal.pause()
    raise AssertionError("nobody kills it")


def lose_one(url: str, topic: str, group: str, held: int) -> None:
    """Have one owner hold its messages, and kill it."""
    told, done = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            live(url, topic, group, held, done)
        finally:
            os._exit(1)
    os.close(done)
    ready = os.read(told, 1)
    os.close(told)
    os.kill(owner, signal.SIGKILL)
    _, status = os.waitpid(owner, 0)
    if not ready or not os.WIFSIGNALED(status):
        raise SystemExit(f"owner {owner} ended by itself")


if __name__ == "__main__":
    place, topic, group, count, held = sys.argv[1:]
    for _ in range(int(count)):
        lose_one(place, topic, group, int(held))
        print(held, flush=True)
