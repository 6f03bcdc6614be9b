"""RabbitMQ by pika alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import pika

from benchmarks.child import Clock, consumed, go
from benchmarks.raw.outbox import Row, drain, serve
from benchmarks.raw.payloads import HANDLED

_PREFETCH = 500


def relay(*, database_url: str, broker_url: str, forever: bool = False) -> dict[str, Any]:
    """SELECT 500, publish all, wait for all confirmations, DELETE."""
    publisher = _Publisher(broker_url)
    return (serve if forever else drain)(database_url, publisher.publish)


class _Publisher:
    """Publishes without waiting for each confirmation, which a BlockingConnection would do."""

    def __init__(self, url: str) -> None:
        self._connection = pika.SelectConnection(
            pika.URLParameters(url), on_open_callback=self._opened, on_open_error_callback=_fail
        )
        self._channel: Any = None
        self._published = 0
        self._pending: dict[int, None] = {}
        self._returned = 0
        self._run()

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._stop())

    def _on_return(self, *_arguments: object) -> None:
        self._returned += 1

    def _on_confirm(self, frame: Any) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise RuntimeError("the broker refused a message")
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            while self._pending and next(iter(self._pending)) <= tag:
                del self._pending[next(iter(self._pending))]
        else:
            self._pending.pop(tag, None)
        if not self._pending:
            self._stop()

    def _run(self) -> None:
        self._connection.ioloop.start()

    def _stop(self) -> None:
        self._connection.ioloop.stop()

    def publish(self, rows: Sequence[Row]) -> None:
        """Return once all *rows* are confirmed."""
        for _, message_id, key, body, content_type, topic in rows:
            properties = pika.BasicProperties(
                message_id=message_id,
                content_type=content_type,
                delivery_mode=2,
                headers={"message-key": key.decode()},
            )
            self._channel.basic_publish(topic, "p.1.0", body, properties, mandatory=True)
        first = self._published + 1
        self._published += len(rows)
        self._pending = dict.fromkeys(range(first, self._published + 1))
        self._run()
        if self._returned:
            raise RuntimeError(f"{self._returned} messages found no queue")


def _fail(_connection: object, error: object) -> None:
    raise RuntimeError(f"no connection: {error!r}")


def consume(*, broker_url: str, queue: str, count: int, payload: str) -> NoReturn:
    """Take with a prefetch, count, acknowledge a hundred at a time."""
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=_PREFETCH)
    handled = HANDLED[payload]
    numbers: list[object] = []

    def on_message(channel: Any, method: Any, _properties: object, body: bytes) -> None:
        numbers.append(handled(body))
        if len(numbers) % 100 == 0 or len(numbers) == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if len(numbers) == count:
            channel.stop_consuming()

    go()
    channel.basic_consume(queue, on_message)
    clock = Clock()
    channel.start_consuming()
    consumed(numbers, clock.read())
