from __future__ import annotations

import socket
from contextlib import closing
from itertools import pairwise, zip_longest
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.adapters.select_connection import IOLoop

from reliable_mq_rabbitmq.client import Client
from reliable_mq_rabbitmq.deliveries import Delivery, read_deliveries
from reliable_mq_rabbitmq.reading import Services
from tests.adapters.rabbitmq.foreign import header_table, long_string

CHANNELS = (1, 2, 3)
OURS = frozenset({1, 2})
"""The others' deliveries are left to pika."""
HEARTBEAT = frame.Heartbeat().marshal()
PROPERTIES = header_table([("h", long_string(b"v"))]).encode()[0]


def method_frame(channel: int, tag: int, *, redelivered: bool = False) -> bytes:
    deliver = spec.Basic.Deliver("a consumer", tag, redelivered, "orders", "p.1.0")
    return bytes(frame.Method(channel, deliver).marshal())


def header_frame(channel: int, size: int) -> bytes:
    properties = header_table([("h", long_string(b"v"))])
    return bytes(frame.Header(channel, size, properties).marshal())


def frames_of(channel: int, tag: int, *parts: bytes, redelivered: bool = False) -> list[bytes]:
    """A delivery as the broker sends it; *parts* are the body."""
    return [
        method_frame(channel, tag, redelivered=redelivered),
        header_frame(channel, sum(map(len, parts))),
        *(frame.Body(channel, part).marshal() for part in parts if part),
    ]


def delivery(channel: int, tag: int, *parts: bytes, redelivered: bool = False) -> bytes:
    return b"".join(frames_of(channel, tag, *parts, redelivered=redelivered))


def test_deliveries_that_came_together_are_read_together() -> None:
    data = (
        delivery(1, 7, b"one")
        + delivery(2, 1, b"", redelivered=True)
        + delivery(1, 8)
        + delivery(1, 2**40, b"in ", b"three ", b"frames")
    )
    expected = [
        (1, 7, False, PROPERTIES, b"one"),
        (2, 1, True, PROPERTIES, b""),
        (1, 8, False, PROPERTIES, b""),
        (1, 2**40, False, PROPERTIES, b"in three frames"),
    ]
    assert read_deliveries(data, OURS) == (expected, len(data), True)


def test_a_delivery_that_is_cut_short_anywhere_waits_for_its_rest() -> None:
    first = delivery(1, 1, b"first")
    second = delivery(1, 2, b"sec", b"ond")
    for cut in range(len(second)):
        found, end, cut_short = read_deliveries(first + second[:cut], OURS)
        assert ([one[1] for one in found], end, cut_short) == ([1], len(first), True)


OTHERS = {
    "a heartbeat": HEARTBEAT + delivery(1, 2, b"x"),
    "a delivery on another's channel": delivery(3, 2, b"x"),
    "another method": frame.Method(1, spec.Basic.QosOk()).marshal(),
    "a heartbeat behind the method": method_frame(1, 2) + HEARTBEAT,
    "another channel's header": method_frame(1, 2) + header_frame(2, 1),
    "a heartbeat behind the header": method_frame(1, 2) + header_frame(1, 2) + HEARTBEAT,
    "another channel's body": method_frame(1, 2)
    + header_frame(1, 2)
    + frame.Body(2, b"xx").marshal(),
    "too long a body": method_frame(1, 2) + header_frame(1, 2) + frame.Body(1, b"xxx").marshal(),
    "a method without an end": method_frame(1, 2)[:-1] + b"\x00" + header_frame(1, 0),
    "a header without an end": method_frame(1, 2) + header_frame(1, 0)[:-1] + b"\x00",
    "a body without an end": delivery(1, 2, b"x")[:-1] + b"\x00",
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_whatever_else_follows_is_left_to_pika(other: bytes) -> None:
    first = delivery(1, 1, b"first")
    found, end, cut_short = read_deliveries(first + other, OURS)
    assert ([one[1] for one in found], end, cut_short) == ([1], len(first), False)


class Consumer:
    """A connection's reading half, with channels that are consumed."""

    def __init__(self, frame_max: int) -> None:
        parameters = pika.ConnectionParameters(frame_max=frame_max)
        self.loop = IOLoop()
        self.client = Client(
            parameters, custom_ioloop=self.loop, internal_connection_workflow=False
        )
        self.taken: list[tuple[int, int, bytes, bytes]] = []
        for number in CHANNELS:
            channel = pika.channel.Channel(self.client, number, lambda _: None)
            channel._consumers["a consumer"] = self.on_message
            self.client._channels[number] = channel
        self.client.deliver(OURS, self.take)

    def on_message(self, channel: Any, method: Any, properties: bytes, body: bytes) -> None:
        self.taken.append((channel.channel_number, method.delivery_tag, properties, body))

    def take(self, deliveries: list[Delivery]) -> None:
        self.taken += [(one[0], one[1], *one[3:]) for one in deliveries]

    def receive(self, data: bytes) -> None:
        self.client._on_data_available(data)

    def close(self) -> None:
        self.loop.close()


bodies = st.lists(st.sampled_from([b"", b"x", b"y" * 100, b"z" * 3000]), max_size=3)


@given(
    sent=st.lists(st.tuples(st.sampled_from(CHANNELS), bodies), max_size=8),
    heartbeats=st.sets(st.integers(0, 40)),
    interleave=st.booleans(),
    cuts=st.sets(st.integers(0, 40_000), max_size=12),
)
def test_each_delivery_is_taken_once_and_in_order_however_the_bytes_come(
    sent: list[tuple[int, list[bytes]]],
    heartbeats: set[int],
    interleave: bool,
    cuts: set[int],
) -> None:
    numbered = [(channel, tag, parts) for tag, (channel, parts) in enumerate(sent)]
    queues = [frames_of(channel, tag, *parts) for channel, tag, parts in numbered]
    if interleave and len({channel for channel, _ in sent[:2]}) == 2:
        queues[:2] = [[one for both in zip_longest(*queues[:2]) for one in both if one]]
    frames = [one for queue in queues for one in queue]
    for place in sorted(heartbeats, reverse=True):
        frames.insert(place, HEARTBEAT)
    data = b"".join(frames)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    with closing(Consumer(frame_max=4096)) as consumer:
        for start, end in pairwise(places):
            consumer.receive(data[start:end])
    for channel in CHANNELS:
        assert [one for one in consumer.taken if one[0] == channel] == [
            (channel, tag, PROPERTIES, b"".join(parts))
            for of, tag, parts in numbered
            if of == channel
        ]


def test_what_came_of_a_large_delivery_is_not_read_again_each_time_more_comes() -> None:
    parts = [bytes((number,)) * 3000 for number in range(10)]
    with closing(Consumer(frame_max=4096)) as consumer:
        for one in frames_of(1, 1, *parts):
            consumer.receive(one)
            assert len(consumer.client._frame_buffer) < 4096
    assert consumer.taken == [(1, 1, PROPERTIES, b"".join(parts))]


class Protocol:
    """What pika's transport hands its bytes to."""

    def __init__(self, loop: IOLoop) -> None:
        self.loop = loop
        self.reads: list[bytes] = []

    def connection_made(self, transport: Any) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        self.loop.stop()


def test_more_is_read_at_a_time_than_pika_asks_for() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.sendall(b"x" * 30_000)
    far.close()
    with closing(IOLoop()) as loop:
        protocol = Protocol(loop)
        Services(loop).create_streaming_connection(lambda: protocol, near, lambda _: None)
        loop.start()
    assert protocol.reads == [b"x" * 30_000]
