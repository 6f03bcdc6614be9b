"""Operations whose reply the caller waits for, on channels that may be lost by asking."""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from pika import exceptions

from reliable_mq.errors import TransportError
from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.connection import Connection


class AskingChannel:
    """One channel, for one thread that waits for each reply.

    The broker answers what it refuses by closing the channel: :class:`errors.ChannelRefused`,
    after which this one is of no more use. ``TransportError`` where the connection ends or there
    is no reply within *timeout* seconds.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._reply: Future[Any] | None = None
        self._channel: Any = None

    def __enter__(self) -> Self:
        self._connection.ask(self._open, self._timeout)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.submit(self._close)

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Call a method of pika's channel that takes a callback; return the reply's method."""

        def start(reply: Future[Any]) -> None:
            self._reply = reply
            call = getattr(self._channel, operation)
            call(callback=lambda frame: reply.set_result(frame.method), **arguments)

        return self._connection.ask(start, self._timeout)

    def _open(self, reply: Future[Any]) -> None:
        self._reply = reply
        self._channel = self._connection.opened().channel(on_open_callback=reply.set_result)
        self._channel.add_on_close_callback(self._on_close)

    def _on_close(self, _: Any, reason: BaseException) -> None:
        if self._reply is None or self._reply.done():
            return
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            refusal = errors.ChannelRefused(reason.reply_code, reason.reply_text)
            self._reply.set_exception(refusal)
        else:
            self._reply.set_exception(TransportError(f"RabbitMQ: {errors.describe(reason)}"))

    def _close(self) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.close()
