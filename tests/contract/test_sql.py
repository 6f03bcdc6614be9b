"""The adapter contract on topics in SQL databases."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory, ContractBase
from reliable_mq.testing.contract.outage import OutageContract
from tests.brokers import Server
from tests.brokers.databases import fresh_database
from tests.conftest import OwnServer


class OnSql(ContractBase):
    quiet = 0.5

    @pytest.fixture
    def adapter(self, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter("sql://", context())
        yield adapter
        adapter.close()


class TestSQLite(OnSql, AdapterContract):
    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url


class TestPostgreSQL(OnSql, AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, postgresql_server: Server) -> Iterator[str]:
        with fresh_database(postgresql_server.url, f"contract_{secrets.token_hex(4)}") as url:
            yield url


class TestMariaDB(OnSql, AdapterContract):
    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, mariadb_server: Server) -> Iterator[str]:
        with fresh_database(mariadb_server.url, f"contract_{secrets.token_hex(4)}") as url:
            yield url


@pytest.mark.chaos
class OutageOnSql(OnSql, OutageContract):
    kind: str

    @pytest.fixture
    def broker(self, own_server: OwnServer) -> Server:
        return own_server(self.kind)

    @pytest.fixture
    def database_url(self, broker: Server) -> str:
        return broker.url


class TestPostgreSQLOutage(OutageOnSql):
    kind = "postgresql"


class TestMariaDBOutage(OutageOnSql):
    kind = "mariadb"
