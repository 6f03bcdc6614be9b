"""Servers for tests that run in processes of their own, and the table of what caught what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _pytest.terminal import TerminalReporter

from tests.brokers import Server, variable
from tests.seeded.bug import Bug

ServersOf = Callable[[Iterable[str]], dict[str, str]]


@pytest.fixture
def servers_of(request: pytest.FixtureRequest) -> ServersOf:
    """Return the variables by which tests elsewhere find the servers of this run."""

    def variables(kinds: Iterable[str]) -> dict[str, str]:
        servers: dict[str, Server] = {
            kind: request.getfixturevalue(f"{kind}_server") for kind in kinds
        }
        return {variable(kind): one.url for kind, one in servers.items()}

    return variables


@pytest.fixture
def caught(request: pytest.FixtureRequest) -> Callable[[Bug], None]:
    """Note for the table that a bug was caught."""

    def note(bug: Bug) -> None:
        request.node.user_properties.append(("seeded", (bug.name, list(bug.caught_by))))

    return note


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed")
    found = [value for one in reports for name, value in one.user_properties if name == "seeded"]
    if not found:
        return
    terminalreporter.section(f"{len(found)} seeded bugs and the tests that caught them")
    for name, tests in found:
        terminalreporter.line(name)
        for test in tests:
            terminalreporter.line(f"    {test}")
