"""A plugin for pytest: beside a test that failed, what the servers of its process said last."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.brokers.base import started

_BYTES = 600
"""Of each: the reports of a whole run are to stay readable."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add a section for each server that has a log."""
    report = yield
    if report.failed:
        for server in sorted(started, key=lambda one: one.kind):
            if tail := server.tail(_BYTES):
                report.sections.append((f"end of the log of {server.kind}", tail))
    return report
