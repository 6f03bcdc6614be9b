"""From stream entries to deliveries, and the account of those that are out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from reliable_mq import wire
from reliable_mq.adapter import Received
from reliable_mq.wire import RawMessage, has_id
from reliable_mq_redis.link import Reply

_BODY = wire.BODY.encode()


def received(topic: str, stream: str, epoch: int, entry: Reply, *, redelivered: bool) -> Received:
    """Return the delivery of one entry, an ``[id, [field, value, ...]]`` of the server's.

    Whatever is in it arrives: of several ``body`` fields the last, without one an empty body.
    """
    entry_id: bytes = entry[0]
    body, headers = _split(entry[1])
    raw = RawMessage(
        topic=topic,
        body=body,
        headers=headers,
        position=None if has_id(headers) else f"{stream}/{entry_id.decode()}",
        native_time=_time_of(entry_id),
    )
    return Received(
        raw=raw, partition=stream, epoch=epoch, receipt=entry_id, redelivered=redelivered
    )


def _split(words: Sequence[bytes]) -> tuple[bytes, list[tuple[str, bytes]]]:
    body = b""
    headers = []
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == _BODY:
            body = value
        else:
            headers.append((name.decode(errors="backslashreplace"), value))
    return body, headers


def _time_of(entry_id: bytes) -> int:
    """Return the server's time of the entry, in milliseconds; a producer may have made it up."""
    return int(entry_id.partition(b"-")[0])


def order_of(delivery: Received) -> tuple[int, int]:
    """Return the place of a delivery in its stream."""
    milliseconds, _, number = delivery.receipt.partition(b"-")
    return int(milliseconds), int(number)


class Held:
    """The deliveries that are out: neither acknowledged, nor handed back, nor lost."""

    def __init__(self) -> None:
        self._by_stream: dict[str, dict[bytes, Received]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, delivery: Received) -> bool:
        """Take *delivery* in; False where the entry is out already."""
        there = self._by_stream.setdefault(delivery.partition, {})
        if delivery.receipt in there:
            return False
        there[delivery.receipt] = delivery
        self._count += 1
        return True

    def has(self, delivery: Received) -> bool:
        """Tell whether *delivery* itself is out, not an earlier or later one of its entry."""
        return self._by_stream.get(delivery.partition, {}).get(delivery.receipt) is delivery

    def drop(self, deliveries: Iterable[Received]) -> None:
        """Strike *deliveries* off."""
        for delivery in deliveries:
            if self.has(delivery):
                del self._by_stream[delivery.partition][delivery.receipt]
                self._count -= 1

    def drop_stream(self, stream: str) -> None:
        """Strike everything of *stream* off."""
        self._count -= len(self._by_stream.pop(stream, {}))

    def of(self, stream: str) -> list[Received]:
        """Return what is out of *stream*."""
        return list(self._by_stream.get(stream, {}).values())

    def grouped(self, deliveries: Iterable[Received]) -> Iterator[tuple[str, list[Received]]]:
        """Give those of *deliveries* that are out by stream, in stream order, 1000 at most each."""
        found: dict[str, dict[bytes, Received]] = {}
        for delivery in deliveries:
            if self.has(delivery):
                found.setdefault(delivery.partition, {})[delivery.receipt] = delivery
        for stream, there in found.items():
            ordered = sorted(there.values(), key=order_of)
            for start in range(0, len(ordered), MOST):
                yield stream, ordered[start : start + MOST]


MOST = 1000
"""Entries of one script call: Lua passes at most 8000 words to a command."""


class Appetite:
    """How many entries to ask for, so that a reply stays within some megabytes.

    The size of the next entries is guessed from the last ones; it begins careful.
    """

    BYTES = 8_000_000

    def __init__(self) -> None:
        self._mean = self.BYTES / 64

    def count(self, room: int) -> int:
        """Return how many to ask for where *room* are wanted."""
        return max(1, min(room, MOST, int(self.BYTES / self._mean)))

    def note(self, deliveries: Sequence[Received]) -> None:
        """Learn from what came."""
        if deliveries:
            size = sum(len(delivery.raw.body) + 256 for delivery in deliveries)
            self._mean = (self._mean + 3 * size / len(deliveries)) / 4
