"""An adapter that was used before its process forked, as a server with preloaded workers does."""

from __future__ import annotations

import subprocess
import sys

import pytest

KINDS = ["rabbitmq", "redis"]

_FORK = """
import os, sys
from reliable_mq.adapter import SENT, AdapterContext, GroupSpec, TopicSpec
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.messages import numbered

url, topic = sys.argv[1:]
spec = TopicSpec(name=topic, partitions=1)
adapter = open_adapter(url, AdapterContext(instance="parent", topics={topic: spec}))
adapter.declare([spec], [GroupSpec(topic=topic, group="billing")])

def works():
    one = adapter.publish(numbered(topic, [1]), 30.0) == [SENT]
    return one and adapter.lag(topic, "billing") > 0

assert works()
child = os.fork()
if child == 0:
    right = works()
    adapter.close()
    os._exit(0 if right else 1)
assert os.waitpid(child, 0)[1] == 0, "the child cannot publish"
assert works(), "the parent cannot publish any more"
assert adapter.lag(topic, "billing") == 3
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
