"""What MariaDB took once stays whole, although it would not take it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text

from reliable_mq import MessageTooLargeError, ReliableMQ, RetryPolicy, Settings
from reliable_mq.testing import Harness
from tests.conftest import OwnServer

BODY = b"x" * 3_000_000
SETTINGS = Settings(broker_url="memory://unused", group="tests", max_message_bytes=5_000_000)


@pytest.fixture
def engine(own_server: OwnServer) -> Iterator[Engine]:
    engine = create_engine(own_server("mariadb").url)
    yield engine
    engine.dispose()


def allow(engine: Engine, size: int) -> None:
    """Let all connections from now on take *size* bytes at once."""
    with engine.connect() as connection:
        connection.execute(text(f"SET GLOBAL max_allowed_packet = {size}"))
    engine.dispose()


def test_a_retry_row_becomes_a_whole_dead_letter_and_its_replay_waits_for_room(
    engine: Engine,
) -> None:
    mq = ReliableMQ(SETTINGS)
    seen: list[bytes] = []

    @mq.handler(mq.topic("t", bytes), retry=RetryPolicy(max_attempts=2, jitter=0))
    def handle(body: bytes) -> None:
        seen.append(body)
        if len(seen) < 3:
            raise ValueError("no")

    with Harness(mq, engine) as h:
        assert h.deliver("t", BODY).result == "retried"
        allow(engine, 1024 * 1024)
        h.run(through=60)
        (letter,) = h.dead_letters()
        assert (letter.complete, letter.message.body, letter.attempts) == (True, BODY, 2)
        (copy,) = h.published("t.tests.dlq")
        assert (copy.body, copy.headers["reliable-mq-truncated"]) == (b"", "body")
        with pytest.raises(MessageTooLargeError, match="1048576 bytes at once"):
            mq.replay(letter.id)
        assert h.dead_letters() == [letter]
        allow(engine, 16 * 1024 * 1024)
        assert mq.replay(letter.id)
        h.run()
        assert seen == [BODY] * 3
