"""Crash points: each declared once, passed somewhere, and deadly only when asked for."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliable_mq import ConfigurationError
from reliable_mq.crashpoints import POINTS, arm, crash_point

PACKAGES = (
    "reliable_mq",
    "reliable_mq_kafka",
    "reliable_mq_rabbitmq",
    "reliable_mq_redis",
    "reliable_mq_sql",
)

PROGRAM = """
from reliable_mq.crashpoints import crash_point
for number in range(1, 4):
    crash_point("relay.claimed")
    crash_point("relay.settled")
    print(number, flush=True)
"""


def calls() -> Iterator[ast.Call]:
    """Every call of ``crash_point`` in the library as it is installed."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for path in Path(spec.origin).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crash_point":
                    yield node


def run(crash: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RMQ_CRASH"}
    if crash is not None:
        environment["RMQ_CRASH"] = crash
    return subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_declared_points_are_those_that_the_library_passes():
    found = set()
    for call in calls():
        (argument,) = call.args
        assert isinstance(argument, ast.Constant), "a name that is not a literal cannot be checked"
        found.add(argument.value)
    assert found == set(POINTS)


def test_the_process_dies_by_sigkill_at_the_passage_that_was_named():
    done = run("relay.settled:2")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "1\n"
    assert done.stderr == "RMQ_CRASH: killed at relay.settled\n"


def test_without_the_variable_nothing_happens():
    done = run(None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n2\n3\n", "")


@pytest.mark.parametrize("value", ["relay.clamed:1", "relay.claimed", "relay.claimed:0", ":1", ""])
def test_a_crash_that_could_never_happen_is_refused(value: str):
    with pytest.raises(ConfigurationError, match="RMQ_CRASH="):
        arm(value)


def test_a_process_that_is_not_armed_passes():
    arm(None)
    crash_point("relay.claimed")
