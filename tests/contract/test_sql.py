"""The adapter contract on topics in SQL databases."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import ClassVar

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
    notices_silence = False
    without: ClassVar = {
        "bad_credentials_url": "the database is the store's, credentials included",
        "notices_silence": "the drivers wait for a silent database until it answers",
        "foreign": "its tables are no interface for other programs",
    }

    @pytest.fixture
    def adapter(self, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter("sql://", context())
        yield adapter
        adapter.close()


class TestSQLite(OnSql, AdapterContract):
    column = "sql: SQLite"
    without: ClassVar = {**OnSql.without, "broker": "a file has no server"}

    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url


class TestPostgreSQL(OnSql, AdapterContract):
    column = "sql: PostgreSQL"

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, postgresql_server: Server) -> Iterator[str]:
        with fresh_database(postgresql_server.url, f"contract_{secrets.token_hex(4)}") as url:
            yield url


class TestMariaDB(OnSql, AdapterContract):
    column = "sql: MariaDB"

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
    column = "sql: PostgreSQL"
    kind = "postgresql"


class TestMariaDBOutage(OutageOnSql):
    column = "sql: MariaDB"
    kind = "mariadb"
