"""Which partition a key belongs to: the same on every broker, and the same as Kafka's clients.

The hash is Kafka's murmur2 (``org.apache.kafka.common.utils.Utils.murmur2``), made positive as
its default partitioner does, so that a Java producer and this library agree.
"""

from __future__ import annotations

import struct
from functools import lru_cache

_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C
_MIX = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit murmur2 of *data*, unsigned."""
    length = len(data)
    value = (_SEED ^ length) & _MASK
    whole = length & ~3
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        mixed = (word * _MIX) & _MASK
        mixed ^= mixed >> 24
        value = ((value * _MIX) & _MASK) ^ ((mixed * _MIX) & _MASK)
    tail = data[whole:]
    if tail:
        value ^= int.from_bytes(tail, "little")
        value = (value * _MIX) & _MASK
    value ^= value >> 13
    value = (value * _MIX) & _MASK
    return value ^ (value >> 15)


@lru_cache(maxsize=65536)
def partition_for(key: bytes, partitions: int) -> int:
    """Return the partition in ``range(partitions)`` that all messages of *key* go to."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
