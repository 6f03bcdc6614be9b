"""Waiting until a majority of a quorum queue's nodes has what its leader was told."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from pika import exceptions, spec

from reliable_mq.errors import TransportError
from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.client import Client


def replicated(client: Client, queue: str, done: Future[Any]) -> None:
    """Set *done* when a majority has everything that the leader of *queue* has now.

    AMQP has no method for that. Asking for one message is an entry of the queue's log, which is
    answered when a majority has it and all before it. A message that comes is given back by the
    end of the channel. Fails with ``TransportError`` where the broker refuses. Not for a queue
    with a single active consumer, which nobody else may ask. For the I/O thread.
    """
    try:
        client.channel(on_open_callback=lambda channel: _ask(channel, queue, done))
    except exceptions.AMQPError as error:
        done.set_exception(TransportError(f"RabbitMQ: {errors.describe(error)}"))


def _ask(channel: Any, queue: str, done: Future[Any]) -> None:
    def answered(*_: Any) -> None:
        if not done.done():
            done.set_result(None)
        channel.close()  # Nobody consumes on it, so that pika's close is harmless.

    def closed(_: Any, reason: BaseException) -> None:
        if not done.done():
            done.set_exception(TransportError(f"RabbitMQ: {errors.describe(reason)}"))

    channel.add_on_close_callback(closed)
    channel.add_callback(answered, [spec.Basic.GetEmpty])
    channel.basic_get(queue, answered)
