"""The adapter contract on topics in SQL databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract, BrokerControl
from reliable_mq.testing.contract.base import ContextFactory
from tests.conftest import OwnServer


class SqlContract(AdapterContract):
    @pytest.fixture
    def adapter(self, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter("sql://", context())
        yield adapter
        adapter.close()


class TestSQLite(SqlContract):
    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url


class TestPostgreSQL(SqlContract):
    @pytest.fixture
    def database_url(self, postgresql_url: str) -> str:
        return postgresql_url


class TestMariaDB(SqlContract):
    @pytest.fixture
    def database_url(self, mariadb_url: str) -> str:
        return mariadb_url
