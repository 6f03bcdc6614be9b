"""On a broken library the nemesis finds violations. Minutes for each bug: RMQ_NEMESIS_BUGS=1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.seeded.catalogue import BUGS
from tests.seeded.workshop import ROOT, copy_library

ASKED = os.environ.get("RMQ_NEMESIS_BUGS") == "1"
FOUND_BY = {
    "the inbox is written and not asked": "I2",
    "what follows a failed message of its key does not wait": "I4",
    "a dead letter is not sent to its topic": "I6",
}
"""The invariant that is broken, by the name of the bug."""


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not ASKED, reason="takes minutes; RMQ_NEMESIS_BUGS=1 asks for it")
@pytest.mark.parametrize("name", FOUND_BY)
def test_it_is_found_that(name: str, tmp_path: Path) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == name)
    library = copy_library(tmp_path, bug=bug)
    nemesis = "tests/nemesis/test_nemesis.py::test_whatever_breaks_no_promise_does"
    done = subprocess.run(
        [*(sys.executable, "-P", "-m", "pytest", "-q", f"{nemesis}[redis-postgresql]")],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(library),
            "RMQ_NEMESIS_SECONDS": "40",
            "RMQ_NEMESIS_SETTLE": "40",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert re.search(rf"^{FOUND_BY[name]}\b", done.stdout, re.MULTILINE), done.stdout[-6000:]
