"""Deliveries read from the bytes of a connection, all that came together at once.

Pika decodes and dispatches a delivery frame by frame, and after each frame copies all it has not
read yet; for a small message that costs more than everything else between socket and handler.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from typing import TypeAlias

from pika import spec

_DELIVER = spec.Basic.Deliver.INDEX
_METHOD = struct.Struct(">BHIIB")
"""Type, channel and size of the frame; the method; the length of the consumer tag."""
_TAG = struct.Struct(">QB")
"""What follows the consumer tag: the delivery tag, and whether it is a redelivery."""
_HEADER = struct.Struct(">BHIIQ")
"""Type, channel and size of the frame; class and weight; the size of the body."""
_FRAME = struct.Struct(">BHI")
_PAST = _FRAME.size + 1
"""A frame's bytes beside its payload: its start, and the byte at its end."""

Delivery: TypeAlias = tuple[int, int, bool, bytes, bytes]
"""Channel, delivery tag, whether it is a redelivery, the undecoded properties, the body."""


def read_deliveries(data: bytes, channels: Container[int]) -> tuple[list[Delivery], int, bool]:
    """Return the deliveries on *channels* that *data* begins with.

    With them where they end, and whether all that follows is the beginning of another one (or
    nothing). Only deliveries whose frames follow each other are recognised, and only valid ones.
    """
    found: list[Delivery] = []
    at = 0
    try:
        while (one := _read_delivery(data, at, channels)) is not None:
            delivery, at = one
            found.append(delivery)
    except (IndexError, struct.error):
        return found, at, True
    return found, at, False


def _read_delivery(data: bytes, at: int, channels: Container[int]) -> tuple[Delivery, int] | None:
    """Return the delivery at *at*, and its end. Raises where *data* ends too early."""
    kind, channel, size, method, length = _METHOD.unpack_from(data, at)
    if method != _DELIVER or kind != spec.FRAME_METHOD or channel not in channels:
        return None
    tag, redelivered = _TAG.unpack_from(data, at + _METHOD.size + length)
    at += size + _PAST
    if data[at - 1] != spec.FRAME_END or data[at] != spec.FRAME_HEADER:
        return None
    _, on, size, _, left = _HEADER.unpack_from(data, at)
    start = at + _HEADER.size
    at += size + _PAST
    if on != channel or data[at - 1] != spec.FRAME_END:
        return None
    properties = data[start : at - 1]
    parts = []
    while left > 0:
        kind, on, size = _FRAME.unpack_from(data, at)
        start = at + _FRAME.size
        at += size + _PAST
        left -= size
        if kind != spec.FRAME_BODY or on != channel or left < 0 or data[at - 1] != spec.FRAME_END:
            return None
        parts.append(data[start : at - 1])
    return (channel, tag, bool(redelivered & 1), properties, b"".join(parts)), at
