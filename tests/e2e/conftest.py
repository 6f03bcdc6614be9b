"""One application on every broker, the processes it runs in, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import Engine, create_engine

from reliable_mq import ReliableMQ, Settings
from tests.e2e.brokers import KINDS, Broker, quick
from tests.e2e.processes import Program
from tests.e2e.program import Folder, build
from tests.e2e.shop import effects, metadata

MakeMQ = Callable[..., ReliableMQ]


def broker_url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of the shared server of this kind, with a place of its own for the test."""
    if kind == "sql":
        return "sql://"
    url: str = request.getfixturevalue(f"{kind}_url")
    return quick(kind, url)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    found: str = request.param
    return found


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Where the choice of database does not matter; a test class or module may override it."""
    return sqlite_url


@pytest.fixture
def broker(kind: str, request: pytest.FixtureRequest, database_url: str) -> Broker:
    """Each broker in turn, with the database of the test."""
    return Broker(kind, broker_url(kind, request), database_url)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The database, with the table that handlers write to."""
    engine = create_engine(database_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def seen(engine: Engine) -> Callable[[], list[str]]:
    """Return the committed effects in their order."""
    return lambda: effects(engine)


@pytest.fixture
def make_mq(broker: Broker) -> Iterator[MakeMQ]:
    """Make an application on the broker and database of the test; closed after it."""
    with ExitStack() as stack:

        def make(**settings: Any) -> ReliableMQ:
            values = {
                "broker_url": broker.url,
                "database_url": broker.database_url,
                "group": "billing",
                **settings,
            }
            return stack.enter_context(ReliableMQ(Settings(**values)))

        yield make


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """What processes of the test tell, and their gates."""
    return Folder(tmp_path)


class StartProgram(Protocol):
    """What the fixture ``start_program`` gives."""

    def __call__(self, **options: str) -> Program:
        """A process of ``program.py`` on the broker and database of the test."""


@pytest.fixture
def start_program(broker: Broker, unique: str, tmp_path: Path) -> Iterator[StartProgram]:
    """Starts processes, and kills what is left of them."""
    with ExitStack() as stack:

        def start(**options: str) -> Program:
            environment = {
                **process_settings(broker),
                "E2E_TOPIC": unique,
                "E2E_FOLDER": str(tmp_path),
                **options,
            }
            return stack.enter_context(Program(environment, tmp_path / "program.log"))

        yield start


def process_settings(broker: Broker) -> dict[str, str]:
    """Settings with which a dead or stopped process is noticed within seconds."""
    return {
        "RELIABLE_MQ_BROKER_URL": broker.url,
        "RELIABLE_MQ_DATABASE_URL": broker.database_url,
        "RELIABLE_MQ_RELAY__LEASE": "1.5",
        "RELIABLE_MQ_RELAY__PUBLISH_TIMEOUT": "1",
        "RELIABLE_MQ_CONSUMER__LEASE": "1.5",
        "RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION": "2",
        "RELIABLE_MQ_CONSUMER__SHUTDOWN_TIMEOUT": "2",
    }


@pytest.fixture
def build_mq(
    broker: Broker, folder: Folder, unique: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeMQ]:
    """The application of ``program.py``, in this process and with the same settings."""
    for name, value in process_settings(broker).items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:

        def make(**options: Any) -> ReliableMQ:
            mq = stack.enter_context(build(unique, folder, **options))
            mq.declare()
            return mq

        yield make
