"""Real servers for the tests; CONTRIBUTING.md describes the fixtures."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.brokers import (
    RabbitMQ,
    Redis,
    Server,
    ServerMissing,
    find,
    server,
    variable,
)

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

S = TypeVar("S", bound=Server)

# How long an example takes says more of the machine than of us. On top of the profile in force, so
# that CI keeps its own (fixed examples); and here, for a test takes it when its module is imported.
settings.register_profile(
    "ours", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ours")

pytest_plugins = ["pytester", "reliable_mq.testing.matrix", "tests.server_logs"]


class OwnServer(Protocol):
    """What the fixture ``own_server`` gives."""

    def __call__(self, kind: str, settings: Mapping[str, str] | None = None) -> Server:
        """A started server for this test alone: it may kill it, pause it, restart it."""


CROWDS = (
    "tests/chaos/",
    "tests/examples/test_cdnow.py",
    "tests/nemesis/",
    "tests/relay/test_chaos.py",
    "tests/sweep/",
)
"""Where each test keeps many processes busy, for minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the crowds: where several workers share the tests, the others would wait."""
    items.sort(key=lambda item: not item.nodeid.startswith(CROWDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Leave all crowds to one worker: two at a time take the machine away from each other."""
    if config.getoption("dist") != "loadfile":
        return None

    from xdist.scheduler import LoadFileScheduling

    class OneCrowdAtATime(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "crowds" if nodeid.startswith(CROWDS) else super()._split_scope(nodeid)

    return OneCrowdAtATime(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-brokers",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="fail, instead of skip, where a server is missing (the default when CI is set)",
    )


def absent(config: pytest.Config, error: ServerMissing) -> NoReturn:
    """Skip a test whose server is not on this machine, or fail it where all are required."""
    if config.getoption("--require-brokers"):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


def started(request: pytest.FixtureRequest, server: S) -> Iterator[S]:
    """Give *server*, started, and stop it; skip or fail where it is not on this machine."""
    try:
        server.start()
    except ServerMissing as error:
        absent(request.config, error)
    try:
        yield server
    finally:
        server.stop()


def _shared(request: pytest.FixtureRequest, kind: str) -> Iterator[Server]:
    found = find(kind)
    for _ in started(request, found):
        yield found
        found.check_alive()


# One server of a kind for the whole run, started when the first test asks for it. They are
# shared: a test that kills or pauses a server takes ``own_server``.


@pytest.fixture(scope="session")
def kafka_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from _shared(request, "kafka")


@pytest.fixture(scope="session")
def rabbitmq_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from _shared(request, "rabbitmq")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from _shared(request, "redis")


@pytest.fixture(scope="session")
def postgresql_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from _shared(request, "postgresql")


@pytest.fixture(scope="session")
def mariadb_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from _shared(request, "mariadb")


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[OwnServer]:
    """Starts servers for this test alone and removes them after it.

    Skips where the environment names an external server of that kind: whoever named it wants the
    tests to run against it, and it cannot be killed from here.
    """
    with ExitStack() as stack:

        def start(kind: str, settings: Mapping[str, str] | None = None) -> Server:
            if os.environ.get(variable(kind)):
                pytest.skip(f"needs a {kind} server of its own, but {variable(kind)} is set")
            try:
                return stack.enter_context(server(kind, settings))
            except ServerMissing as error:
                absent(request.config, error)

        yield start


# Names and places that no other test uses.


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test: good as topic, group, prefix and database name."""
    readable = re.sub(r"[^a-z0-9]+", "_", request.node.name.removeprefix("test_").lower())
    return f"t_{readable[:24].strip('_')}_{secrets.token_hex(4)}"


@pytest.fixture
def kafka_url(kafka_server: Server) -> str:
    """The shared broker; topics and groups are kept apart by ``unique``."""
    return kafka_server.url


@pytest.fixture
def rabbitmq_url(rabbitmq_server: Server, unique: str) -> Iterator[str]:
    """A virtual host of its own on the shared node (an external node is used as it is)."""
    if not isinstance(rabbitmq_server, RabbitMQ):
        yield rabbitmq_server.url
        return
    yield rabbitmq_server.create_vhost(unique)
    rabbitmq_server.delete_vhost(unique)


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    """An empty database on the shared server (an external server is used as it is)."""
    if not isinstance(redis_server, Redis):
        return redis_server.url
    return redis_server.fresh_database()


@pytest.fixture
def postgresql_url(postgresql_server: Server, unique: str) -> Iterator[str]:
    """A fresh database on the shared server."""
    from tests.brokers.databases import fresh_database

    with fresh_database(postgresql_server.url, unique) as url:
        yield url


@pytest.fixture
def mariadb_url(mariadb_server: Server, unique: str) -> Iterator[str]:
    """A fresh database on the shared server."""
    from tests.brokers.databases import fresh_database

    with fresh_database(mariadb_server.url, unique) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each supported kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
