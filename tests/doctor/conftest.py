"""Servers set up well and badly, and what the doctor says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from reliable_mq import ReliableMQ, Settings
from reliable_mq.adapter import Finding, Severity
from reliable_mq.doctor import diagnose
from reliable_mq.store import Store
from reliable_mq.store.inspection import Expected, inspect_store
from tests.brokers import Server, ServerMissing, server, variable
from tests.conftest import absent

Diagnose = Callable[..., list[Finding]]
OpenMQ = Callable[..., ReliableMQ]


@contextmanager
def started(
    request: pytest.FixtureRequest, kind: str, settings: Mapping[str, str]
) -> Iterator[Server]:
    """A server with *settings* for the tests of one module."""
    import os

    if os.environ.get(variable(kind)):
        pytest.skip(f"needs a {kind} server of its own, but {variable(kind)} is set")
    with ExitStack() as stack:
        try:
            found = stack.enter_context(server(kind, settings))
        except ServerMissing as error:
            absent(request.config, error)
        yield found


def seen(store: Store, **expected: Any) -> dict[str, Severity]:
    """What an inspection of the database finds: severities by code."""
    return by_code(inspect_store(store, Expected(**expected)).findings)


def by_code(findings: list[Finding]) -> dict[str, Severity]:
    """The severities by code; each finding has one."""
    assert all(one.code and one.what and one.why and one.remedy for one in findings)
    return {one.code: one.severity for one in findings}


def worse_than_info(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.severity is not Severity.INFO]


@pytest.fixture
def open_mq(sqlite_url: str) -> Iterator[OpenMQ]:
    """Makes applications, on topics in an SQLite file unless the settings say otherwise."""
    with ExitStack() as stack:

        def make(*, engine: Any = None, **settings: Any) -> ReliableMQ:
            if engine is None:
                settings.setdefault("database_url", sqlite_url)
            return stack.enter_context(ReliableMQ(Settings(**settings), engine=engine))

        yield make


def ignore(order: str) -> None:
    """A handler that is never called."""


def codes(mq: ReliableMQ) -> dict[str, Severity]:
    return by_code(diagnose(mq))
