"""On a broken library the nemesis finds violations: of one bug for sure, of others by chance."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nemesis.world import START
from tests.seeded.catalogue import BUGS
from tests.seeded.workshop import ROOT, copy_library

ASKED = os.environ.get("RMQ_NEMESIS_BUGS") == "1"
FOUND_BY = {
    "the inbox is written and not asked": "I2",
    "what follows a failed message of its key does not wait": "I4",
    "a dead letter is not sent to its topic": "I6",
}
"""The invariant that is broken, by the name of the bug."""


NEMESIS = "tests/nemesis/test_nemesis.py"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(START + 1200)
def test_a_delivery_acknowledged_before_its_commit_is_found_to_be_lost(tmp_path: Path) -> None:
    test = f"{NEMESIS}::test_consumers_that_are_killed_before_their_commit_lose_nothing"
    said = said_of("a delivery is acknowledged before its commit", test, tmp_path, {})
    assert re.search(r"^I1 \w+: lost \[\d+", said, re.MULTILINE), said[-6000:]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(START + 1200)
@pytest.mark.skipif(not ASKED, reason="takes minutes; RMQ_NEMESIS_BUGS=1 asks for it")
@pytest.mark.parametrize("name", FOUND_BY)
def test_it_is_found_that(name: str, tmp_path: Path) -> None:
    test = f"{NEMESIS}::test_whatever_breaks_no_promise_does[redis-postgresql]"
    said = said_of(name, test, tmp_path, {"RMQ_NEMESIS_SECONDS": "40"})
    assert re.search(rf"^{FOUND_BY[name]}\b", said, re.MULTILINE), said[-6000:]


def said_of(name: str, test: str, folder: Path, variables: dict[str, str]) -> str:
    """Run *test* on a library with the bug *name*, where it must fail; return what it says."""
    (bug,) = (bug for bug in BUGS if bug.name == name)
    library = copy_library(folder, bug=bug)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", test],
        cwd=ROOT,
        env={
            **os.environ,
            **variables,
            "PYTHONPATH": str(library),
            "RMQ_NEMESIS_SETTLE": "40",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout
