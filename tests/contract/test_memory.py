from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory, Foreign, fresh_name
from reliable_mq.testing.memory import MemoryAdapter, MemoryBroker, open_adapter


class Control:
    """The memory broker's faults in the words of the contract."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def start(self) -> None:
        self._broker.up()

    def kill(self) -> None:
        self._broker.down()

    def restart(self) -> None:
        self._broker.down()
        self._broker.up()

    def pause(self) -> None:
        self._broker.down()

    def resume(self) -> None:
        self._broker.up()


class TestMemoryContract(AdapterContract):
    column = "memory"
    without: ClassVar = {"bad_credentials_url": "no connection, hence no credentials"}
    short_lease = 0.5  # There are no leases in it.
    quiet = 0.1

    @pytest.fixture
    def adapter(self, context: ContextFactory) -> Iterator[MemoryAdapter]:
        name = fresh_name("broker")
        adapter = open_adapter(f"memory://{name}", context())
        yield adapter
        adapter.close()
        MemoryBroker.forget(name)

    @pytest.fixture
    def broker(self, adapter: MemoryAdapter) -> Control:
        return Control(adapter.broker)

    @pytest.fixture
    def foreign(self, adapter: MemoryAdapter) -> Foreign:
        def publish(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            adapter.broker.inject(topic, body or b"", headers)

        return publish
