"""An adapter that was used before its process forked, as a server with preloaded workers does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ["rabbitmq", "redis"]

_FORK = """
import os, sys
from reliable_mq.adapter import SENT, AdapterContext, GroupSpec, TopicSpec
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.messages import numbered
from reliable_mq.testing.contract.waiting import wait_for

url, topic = sys.argv[1:]
spec = TopicSpec(name=topic, partitions=1)
adapter = open_adapter(url, AdapterContext(instance="parent", topics={topic: spec}))
adapter.declare([spec], [GroupSpec(topic=topic, group="billing")])

def wait_for_lag(lag):
    # RabbitMQ says 0 of a queue that is slow to answer.
    wait_for(lambda: adapter.lag(topic, "billing") == lag, f"a lag of {lag}")

def works(lag):
    one = adapter.publish(numbered(topic, [1]), 30.0) == [SENT]
    wait_for_lag(lag)
    return one

assert works(1)
child = os.fork()
if child == 0:
    right = works(2)
    adapter.close()
    os._exit(0 if right else 1)
assert os.waitpid(child, 0)[1] == 0, "the child cannot publish"
assert works(3), "the parent cannot publish any more"
adapter.close()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_parent_and_child_of_a_fork_publish_on_connections_of_their_own(
    request: pytest.FixtureRequest, kind: str, unique: str
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    command = [sys.executable, "-c", _FORK, url, unique]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


_CONSUMERS = """
import os, sys
from reliable_mq import ReliableMQ, Settings
from reliable_mq.testing.contract.waiting import wait_for

broker, database, topic, log = sys.argv[1:]
COUNT = 40
mq = ReliableMQ(Settings(broker_url=broker, database_url=database, group="billing"))
orders = mq.topic(topic, int, partitions=4)

@mq.handler(orders, guarantee="at-most-once")
def note(number: int) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{number}\\n".encode())
    os.close(file)

mq.declare()
until, stop = os.pipe()
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        os.close(stop)
        with mq.running(relay=False):
            os.read(until, 1)
        os._exit(0)
    children.append(child)

for number in range(COUNT):
    mq.publish_direct(orders, number, key=str(number))
wait_for(lambda: mq.status().groups[topic, "billing"].lag == 0, "everything acknowledged")
os.close(stop)
for child in children:
    assert os.waitpid(child, 0)[1] == 0, "a child failed"
mq.close()
handled = sorted(int(line) for line in open(log))
assert handled == list(range(COUNT)), handled
"""


@pytest.mark.parametrize("kind", ["sql", "redis"])
def test_forked_consumers_of_one_application_share_the_work(
    request: pytest.FixtureRequest, kind: str, store_url: str, unique: str, tmp_path: Path
) -> None:
    url = "sql://" if kind == "sql" else request.getfixturevalue("redis_url")
    command = [sys.executable, "-c", _CONSUMERS, url, store_url, unique, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
