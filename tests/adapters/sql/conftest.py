from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from reliable_mq.adapter import SENT, AdapterContext, GroupSpec, TopicSpec
from reliable_mq.message import Message, new_message_id
from reliable_mq.store import Store
from reliable_mq_sql import SqlAdapter, open_adapter

Open = Callable[..., SqlAdapter]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store on each kind of database in turn."""
    store = Store(database_url=store_url)
    store.create()
    yield store
    store.dispose()


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    store = Store(database_url=sqlite_url)
    store.create()
    yield store
    store.dispose()


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens adapters and closes them."""
    with ExitStack() as stack:

        def make(
            store: Store, *, lease: float = 30.0, max_message_bytes: int = 1_000_000
        ) -> SqlAdapter:
            context = AdapterContext(
                instance=new_message_id(),
                store=store,
                lease=lease,
                max_message_bytes=max_message_bytes,
            )
            adapter = open_adapter("sql://", context)
            stack.callback(adapter.close)
            return adapter

        yield make


def declare(adapter: SqlAdapter, *groups: str, partitions: int = 1, **options: object) -> None:
    adapter.declare(
        [TopicSpec(name="orders", partitions=partitions, options=options)],
        [GroupSpec(topic="orders", group=group) for group in groups],
    )


def order(number: int, *, key: str | None = "ann") -> Message:
    return Message(id=f"order-{number}", topic="orders", key=key, body=str(number).encode())


def publish(adapter: SqlAdapter, *numbers: int, keys: int = 1) -> None:
    batch = [order(number, key=f"key-{number % keys}") for number in numbers]
    outcomes = adapter.publish(batch, 20)
    assert outcomes == [SENT] * len(numbers)
