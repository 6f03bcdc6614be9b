"""The application, the processes and the brokers of the end-to-end tests."""

import pytest

from tests.e2e.brokers import Broker
from tests.e2e.conftest import (
    broker,
    build_mq,
    database_url,
    engine,
    folder,
    kind,
    make_mq,
    seen,
    start_program,
)

__all__ = [
    "broker",
    "build_mq",
    "database_url",
    "engine",
    "folder",
    "kind",
    "make_mq",
    "seen",
    "start_program",
    "unhurried",
]


def unhurried(kind: str, request: pytest.FixtureRequest, database_url: str) -> Broker:
    """The broker with the time-outs that it has by itself.

    For tests in which nobody dies: a process that stalls for a second is not to lose its work.
    """
    url = "sql://" if kind == "sql" else request.getfixturevalue(f"{kind}_url")
    return Broker(kind, url, database_url)
