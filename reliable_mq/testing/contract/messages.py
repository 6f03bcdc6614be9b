"""The messages the suite sends, and how it recognises them on arrival."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from reliable_mq import wire
from reliable_mq.adapter import Received
from reliable_mq.message import Message, new_message_id
from reliable_mq.partitioning import partition_for

LIMITS = wire.Limits(message_bytes=100_000_000)


def message(topic: str, body: bytes = b"body", *, key: str | None = None) -> Message:
    """Return a message with a fresh id."""
    return Message(id=new_message_id(), topic=topic, key=key, body=body)


def numbered(topic: str, numbers: Iterable[int], *, key: str | None = "key") -> list[Message]:
    """Return one message a number; :func:`number_of` reads it back."""
    return [message(topic, str(number).encode(), key=key) for number in numbers]


def number_of(delivery: Received) -> int:
    """Return the number of a delivered :func:`numbered` message."""
    return int(delivery.raw.body)


def numbers_of(deliveries: Iterable[Received]) -> list[int]:
    """Return the numbers of delivered messages in the order of their arrival."""
    return [number_of(delivery) for delivery in deliveries]


def decoded(delivery: Received) -> Message:
    """Return the message as the common layer would see it."""
    return wire.decode(delivery.raw, LIMITS).message


def id_of(delivery: Received) -> str:
    """Return the message id of a delivery."""
    return decoded(delivery).id


def ids_of(deliveries: Iterable[Received]) -> list[str]:
    """Return the message ids in the order of their arrival."""
    return [id_of(delivery) for delivery in deliveries]


def key_of(delivery: Received) -> str | None:
    """Return the ordering key of a delivery."""
    return decoded(delivery).key


def one_key_per_partition(partitions: int) -> list[str]:
    """Return keys of which the i-th belongs to partition i."""
    found: dict[int, str] = {}
    for index in count():
        key = f"key-{index}"
        found.setdefault(partition_for(key.encode(), partitions), key)
        if len(found) == partitions:
            break
    return [found[partition] for partition in range(partitions)]
