"""Messages of one topic as the words of one call of the publish script."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from reliable_mq import wire
from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq_redis import keys, scripts
from reliable_mq_redis.packing import Packed, known_word, packed, word

MAX_COUNT = 125
"""Messages of one call: under 2 ms of the server's time, in which it serves nobody else. While it
works the next call is encoded; with larger ones there would be less of that in a publish."""

MAX_BYTES = 1_000_000
"""Bytes of one call (but one message at least). Bounds the memory a call takes on both sides."""

MAX_HEADERS = 3900
"""Headers of a message: Lua passes at most 8000 words to a command."""

_DIGEST = 14
"""Bytes: with its frame a set member of 16, where 16 would take 24 or 32; 112 bits are plenty."""

_FIXED_KEYS = 4


@dataclass(slots=True)
class Chunk:
    """One call: which messages (by their index in the publish), and its words as they travel."""

    indexes: list[int] = field(default_factory=list)
    streams: dict[int, int] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    words: list[bytes] = field(default_factory=list)
    count: int = 0
    size: int = 0

    def add(self, index: int, message: Message, partition: int) -> None:
        """Append one message that goes to *partition*."""
        count, fields = fields_of(message)
        self.indexes.append(index)
        self.digests.append(word(digest_of(message)))
        place = self.streams.setdefault(partition, len(self.streams) + 1 + _FIXED_KEYS)
        self.words += (known_word(place), known_word(count), fields)
        self.count += 2 + count
        self.size += len(fields)

    @property
    def full(self) -> bool:
        """Whether the next message belongs into another call."""
        return len(self.indexes) >= MAX_COUNT or self.size >= MAX_BYTES

    def call(
        self, topic: str, instance: str, *, partitions: int, generation: int, window: int
    ) -> Packed:
        """Return the call. *window* is that of the guard in ms, 0 for none."""
        names = [
            keys.meta(topic),
            keys.floor(topic, instance),
            keys.seen(topic, 0),
            keys.seen(topic, 1),
            *(keys.stream(topic, partition) for partition in self.streams),
        ]
        numbers = (partitions, generation, window, len(self.indexes))
        head = [*map(known_word, (len(names), *names, *numbers))]
        count = len(head) + len(self.digests) + self.count
        return packed(scripts.PUBLISH.sha, count, (*head, *self.digests, *self.words))


class Spreader:
    """Gives messages without a key to the partitions in turn. Any thread may call it."""

    def __init__(self) -> None:
        self._next = 0

    def partition(self, message: Message, partitions: int) -> int:
        """Return the partition of *message*."""
        if message.key is not None:
            return partition_for(message.key.encode(), partitions)
        # Two threads may take the same number: then one partition gets one message more.
        self._next += 1
        return self._next % partitions


def chunks_of(
    indexed: list[tuple[int, Message]], partitions: int, spreader: Spreader
) -> Iterator[Chunk]:
    """Cut the messages of one topic into calls, in their order."""
    chunk = Chunk()
    for index, message in indexed:
        if chunk.full:
            yield chunk
            chunk = Chunk()
        chunk.add(index, message, spreader.partition(message, partitions))
    if chunk.indexes:
        yield chunk


def fields_of(message: Message) -> tuple[int, bytes]:
    """Return the number of the words of the stream entry, and these as they travel.

    They are header names and values, then the body.
    """
    pairs = [*wire.encode_headers(message), (wire.BODY, message.body)]
    words = [part for name, value in pairs for part in (known_word(name), word(value))]
    return len(words), b"".join(words)


def digest_of(message: Message) -> bytes:
    """Return what the guard knows a message by: the same id with another body is another one."""
    told = b"%b\0%b" % (message.id.encode(), message.body)
    return hashlib.blake2b(told, digest_size=_DIGEST).digest()
