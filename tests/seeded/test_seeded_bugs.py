"""The tests must catch what they are there to catch: a broken copy of the library for each bug.

A plain run checks that all of them still apply. They are caught with ``RMQ_SEEDED=all`` set, which
is what ``tox -e seeded`` does, and those for which no server is started with ``RMQ_SEEDED=quick``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.seeded.bug import Bug
from tests.seeded.catalogue import BUGS
from tests.seeded.conftest import ServersOf
from tests.seeded.workshop import ROOT, Verdict, copy_library, run_tests

WHICH = os.environ.get("RMQ_SEEDED", "none")
CHOSEN = [bug for bug in BUGS if WHICH == "all" or (WHICH == "quick" and bug.quick)]
SETS = sorted({tuple(bug.servers) for bug in CHOSEN})

each_bug = pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])


@each_bug
def test_the_patch_applies_and_is_python(bug: Bug, tmp_path: Path) -> None:
    library = copy_library(tmp_path, bug=bug)
    for edit in bug.edits:
        if edit.path.endswith(".py"):
            compile((library / edit.path).read_text(), edit.path, "exec")


def test_each_bug_has_a_name_of_its_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 30


def test_each_trap_has_a_bug_that_springs_it_and_a_test_of_its_own() -> None:
    folder = ROOT / "tests" / "traps"
    tests = {int(file.name[5:7]) for file in folder.glob("test_[0-9][0-9]_*.py")}
    assert {bug.trap for bug in BUGS if bug.trap} == tests == set(range(1, 20))


@pytest.mark.parametrize("servers", SETS, ids=lambda kinds: " and ".join(kinds) or "none")
def test_on_the_library_as_it_is_the_tests_pass_that_need_the_servers(
    servers: tuple[str, ...], tmp_path: Path, servers_of: ServersOf
) -> None:
    tests = sorted({test for bug in CHOSEN if bug.servers == servers for test in bug.caught_by})
    report = run_tests(copy_library(tmp_path), tests, servers_of(servers))
    assert report.are(Verdict.PASSED, tests), report.output


@pytest.mark.parametrize("bug", CHOSEN, ids=[bug.name for bug in CHOSEN])
def test_it_is_caught_that(
    bug: Bug, tmp_path: Path, servers_of: ServersOf, caught: Callable[[Bug], None]
) -> None:
    report = run_tests(copy_library(tmp_path, bug=bug), bug.caught_by, servers_of(bug.servers))
    assert report.are(Verdict.FAILED, bug.caught_by), report.output
    caught(bug)
