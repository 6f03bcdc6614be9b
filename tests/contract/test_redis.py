"""The adapter contract on real Redis servers, as a user with no more rights than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory, Foreign
from reliable_mq_redis import rights
from tests.brokers import Redis
from tests.conftest import OwnServer

USER, PASSWORD = "contract", "r1ght"
RIGHTS = f"on >{PASSWORD} ~{{contract-* {rights.USE} {rights.INSPECT}"


class TestRedisContract(AdapterContract):
    column = "redis"

    @pytest.fixture
    def broker(
        self, own_server: OwnServer, request: pytest.FixtureRequest, tmp_path: Path
    ) -> Redis | None:
        # A server of its own only where the test kills it: the others share one.
        if "control" not in request.fixturenames:
            return None
        users = tmp_path / "users.acl"
        users.write_text(f"user default on nopass ~* &* +@all\nuser {USER} {RIGHTS}\n")
        server = own_server("redis", {"appendfsync": "always", "aclfile": str(users)})
        assert isinstance(server, Redis)
        return server

    @pytest.fixture
    def admin_url(self, broker: Redis | None, request: pytest.FixtureRequest) -> str:
        if broker is not None:
            return broker.url
        url: str = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as client:
            client.execute_command("ACL", "SETUSER", USER, "reset", *RIGHTS.split())
        return url

    @pytest.fixture
    def url(self, admin_url: str) -> str:
        return admin_url.replace("://", f"://{USER}:{PASSWORD}@")

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def bad_credentials_url(self, url: str) -> str:
        return url.replace(PASSWORD, "wrong-s3cret")

    @pytest.fixture
    def foreign(self, admin_url: str) -> Foreign:
        def publish(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            pairs = headers if body is None else [("body", body), *headers]
            words = [word for pair in pairs for word in pair]
            with redis.Redis.from_url(admin_url) as client:
                client.execute_command("XADD", f"{{{topic}}}:0", "*", *words)

        return publish
