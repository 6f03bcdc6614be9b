"""Parent and child of a fork share an instance, and so the floor below which a call is refused."""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from reliable_mq_redis import keys
from reliable_mq_redis.adapter import RedisAdapter
from tests.adapters.redis.conftest import Declare
from tests.adapters.redis.proxy import Proxy

_PROGRAM = """
import os, socket, sys
from reliable_mq.adapter import AdapterContext
from reliable_mq.message import Message
from reliable_mq.registry import open_adapter

url, topic, *descriptors = sys.argv[1:]
adapter = open_adapter(url, AdapterContext(instance="shared"))

def message(name, number):
    return Message(id=f"{name}-{number}", topic=topic, key=name, body=f"{name} {number}".encode())

def serve(name, descriptor):
    with socket.socket(fileno=int(descriptor)) as orders, orders.makefile("rw") as lines:
        for line in lines:
            seconds, *numbers = line.split()
            sent = adapter.publish([message(name, number) for number in numbers], float(seconds))
            print(*(type(one).__name__ for one in sent), file=lines, flush=True)
    adapter.close()

child = os.fork()
mine = descriptors.pop(child == 0)
os.close(int(descriptors.pop()))
serve("child" if child == 0 else "parent", mine)
if child:
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
"""


class Side:
    """One of the two processes: publishes its messages as an outbox does, oldest first."""

    def __init__(self, orders: socket.socket) -> None:
        self._lines = orders.makefile("rw")
        self.made = 0
        self._sent = 0

    def publish(self, more: int, seconds: float = 10.0) -> bool:
        """Publish what is not confirmed, and *more*; return whether all of it is."""
        self.made += more
        numbers = range(self._sent, self.made)
        print(seconds, *numbers, file=self._lines, flush=True)
        outcomes = self._lines.readline().split()
        assert len(outcomes) == len(numbers)
        confirmed = len(list(itertools.takewhile("Sent".__eq__, outcomes)))
        assert "Sent" not in outcomes[confirmed:]
        self._sent += confirmed
        return self._sent == self.made

    def close(self) -> None:
        self._lines.close()


Fork = Callable[[str], tuple[Side, Side]]


@pytest.fixture
def fork(through: str, resources: ExitStack) -> Iterator[Fork]:
    """Start the two, which reach the server through the proxy; they have to end well."""
    processes: list[subprocess.Popen[bytes]] = []
    sides: list[Side] = []

    def start(topic: str) -> tuple[Side, Side]:
        pairs = [socket.socketpair() for _ in range(2)]
        theirs = [pair[1].fileno() for pair in pairs]
        words = [sys.executable, "-P", "-c", _PROGRAM, through, topic, *map(str, theirs)]
        processes.append(subprocess.Popen(words, pass_fds=theirs))
        for ours, given in pairs:
            given.close()
            resources.callback(ours.close)
            sides.append(Side(ours))
        parent, child = sides
        return parent, child

    yield start
    for side in sides:
        side.close()
    resources.close()
    assert [process.wait(60) for process in processes] == [0]


def stored(raw: Any, topic: str, name: str) -> list[int]:
    """Return the numbers of one side's messages in the order of the stream."""
    bodies = [fields[b"body"].decode().split() for _, fields in raw.xrange(keys.stream(topic, 0))]
    return [int(number) for who, number in bodies if who == name]


def test_a_forked_child_publishes_although_its_parents_failure_has_raised_the_floor(
    declare: Declare, fork: Fork, proxy: Proxy, raw: Any
) -> None:
    topic = declare()
    parent, child = fork(topic)
    assert parent.publish(1)
    assert child.publish(1)
    for failing, other in ((parent, child), (parent, child), (child, parent), (parent, child)):
        proxy.drop_replies()
        assert not failing.publish(2)
        proxy.go_on()
        assert failing.publish(1)
        # Its own generation is below the floor now: the server refuses its first call.
        assert other.publish(2)
        assert failing.publish(1)
    assert int(raw.get(keys.floor(topic, "shared"))) >= 3
    for name, side in (("parent", parent), ("child", child)):
        assert stored(raw, topic, name) == list(range(side.made))


def test_however_calls_are_lost_or_late_each_message_of_parent_and_child_is_stored_once_in_order(
    adapter: RedisAdapter, declare: Declare, fork: Fork, proxy: Proxy, raw: Any
) -> None:
    topic, dice = declare(), random.Random(7)
    sides = dict(zip(("parent", "child"), fork(topic), strict=True))
    failures = 0
    for _ in range(60):
        side = sides[dice.choice(("parent", "child"))]
        match dice.randrange(4):
            case 0:
                proxy.drop_replies()
                failures += not side.publish(dice.randrange(1, 4))
            case 1:
                # Executed when the proxy goes on: before or after what is published then.
                proxy.hold_requests()
                failures += not side.publish(dice.randrange(1, 4), 0.2)
            case _:
                assert side.publish(dice.randrange(1, 4))
        proxy.go_on()
    assert failures > 20
    for name, side in sides.items():
        assert side.publish(1)
        assert stored(raw, topic, name) == list(range(side.made))
    assert adapter.lag(topic, "billing") == sum(side.made for side in sides.values())
