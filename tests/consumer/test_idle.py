"""What ``run_until_idle`` waits for, and what it counts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from reliable_mq import ReliableMQ, Settings
from reliable_mq.relay import settler
from reliable_mq.relay.relay import Relay
from reliable_mq.store.outbox import sending


def test_what_is_deleted_and_not_counted_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay counts after its commit; whoever looks between the two sees an empty outbox."""
    looks: list[int] = []
    enough = threading.Event()
    sendable, settle = Relay.sendable, sending.settle

    def looked(relay: Relay) -> int:
        count = sendable(relay)
        if count == 0:
            looks.append(count)
            if len(looks) > 5:
                enough.set()
        return count

    def slow(*arguments: Any) -> None:
        settle(*arguments)
        service = mq._service
        assert service is not None
        # Without the check for this nobody looks that often, and the stop begins.
        while not (enough.wait(0.05) or service._stop.is_set()):
            pass

    monkeypatch.setattr(Relay, "sendable", looked)
    monkeypatch.setattr(settler, "settle", slow)
    settings = Settings(broker_url="sql://", database_url=f"sqlite:///{tmp_path}/a.db")
    with ReliableMQ(settings) as mq:
        mq.topic("t")
        with mq.transaction():
            mq.publish("t", 1)
        assert mq.run_until_idle(60).sent == 1
        assert enough.is_set()
