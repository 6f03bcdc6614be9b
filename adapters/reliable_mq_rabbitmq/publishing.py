"""The connection for publishing and its channels in confirm mode."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from pika import exceptions

from reliable_mq.adapter import SENT, Unknown
from reliable_mq.crashpoints import crash_point
from reliable_mq_rabbitmq.client import content_frames
from reliable_mq_rabbitmq.codec import decode_properties
from reliable_mq_rabbitmq.connection import Connection
from reliable_mq_rabbitmq.options import Options
from reliable_mq_rabbitmq.runs import Item, Run

_IDLE_CHANNELS = 64
_CLOSE_PATIENCE = 2.0
_WRITE_BYTES = 256 * 1024
_NACKED = Unknown("RabbitMQ refused the message for now (nack): a queue is full or not available")


class PublishingConnection(Connection):
    """A connection whose I/O thread sends runs, each on a channel that it has for itself.

    So whatever closes a channel concerns one topic of one call: the broker answers a publish to
    a missing exchange by closing the channel.
    """

    def __init__(self, options: Options, name: str) -> None:
        super().__init__(options, name)
        self._idle: list[ConfirmChannel] = []
        self._carriers: dict[Run, ConfirmChannel] = {}
        self._abandoned: set[Run] = set()
        self._changed = threading.Condition()

    # --- for any thread ---

    def launch(self, runs: Sequence[Run]) -> Future[Any]:
        """Send *runs*; the reply is done when they all are, failed when the connection ends."""
        return self.request(lambda reply: self._start(runs, reply))

    def abandon(self, runs: Sequence[Run]) -> None:
        """Send nothing more of *runs* and close their channels.

        Until these are closed :meth:`wait_until_clear` waits: the broker may still store what
        is on its way to it.
        """
        with self._changed:
            self._abandoned.update(run for run in runs if not run.over)
        self.submit(lambda: self._close_carriers(runs))

    def wait_until_clear(self, timeout: float) -> bool:
        """Wait until nothing abandoned can be stored any more; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._abandoned, max(0.0, timeout))

    # --- for the I/O thread ---

    def _start(self, runs: Sequence[Run], reply: Future[Any]) -> None:
        left = set(runs)

        def finished(run: Run) -> None:
            left.discard(run)
            self._release(run)
            if not left and not reply.done():
                reply.set_result(None)

        for run in runs:
            run.finished = partial(finished, run)
            self._carry(run)

    def _carry(self, run: Run) -> None:
        try:
            carrier = self._idle.pop() if self._idle else ConfirmChannel(self)
        except exceptions.AMQPError as error:
            run.fail(error)
        else:
            self._carriers[run] = carrier
            carrier.carry(run)

    def _release(self, run: Run) -> None:
        carrier = self._carriers.pop(run, None)
        if carrier is not None:
            carrier.release()
        with self._changed:
            self._abandoned.discard(run)
            self._changed.notify_all()

    def keep(self, channel: ConfirmChannel) -> None:
        """Take back an open channel that carries nothing."""
        if len(self._idle) < _IDLE_CHANNELS:
            self._idle.append(channel)
        else:
            channel.close()

    def forget(self, channel: ConfirmChannel) -> None:
        """Take note that a channel is closed."""
        if channel in self._idle:
            self._idle.remove(channel)

    def _close_carriers(self, runs: Sequence[Run]) -> None:
        for run in runs:
            carrier = self._carriers.get(run)
            if carrier is not None:
                carrier.close()
        self.later(_CLOSE_PATIENCE, lambda: self._cut_unless_closed(runs))

    def _cut_unless_closed(self, runs: Sequence[Run]) -> None:
        # While the broker blocks us it answers nothing, and would not on a new connection either:
        # that would only leave one more half-sent batch behind.
        if self.blocked is None and any(run in self._carriers for run in runs):
            self.cut("the broker did not close a channel in time")

    def _on_end(self) -> None:
        with self._changed:
            self._abandoned.clear()
            self._changed.notify_all()

    def _on_blocked_changed(self) -> None:
        for carrier in list(self._carriers.values()):
            carrier.pump()


class ConfirmChannel:
    """A channel in confirm mode with its own count of publishes. For the I/O thread."""

    def __init__(self, connection: PublishingConnection) -> None:
        self._connection = connection
        self._client = connection.opened()
        self._run: Run | None = None
        self._selected = False
        self._refused = False
        self._count = 0
        self._channel = self._client.channel(on_open_callback=self._on_open)
        self._channel.add_on_close_callback(self._on_close)

    @property
    def blocked(self) -> bool:
        """Tell whether the broker takes no publishes now."""
        return self._connection.blocked is not None

    @property
    def properties_max(self) -> int:
        """Return how many bytes of properties the broker takes."""
        return self._client.properties_max

    def carry(self, run: Run) -> None:
        """Send *run*, now or as soon as the channel is open."""
        self._run = run
        self.pump()

    def pump(self) -> None:
        """Let the run send what it may."""
        if self._run is not None and self._selected and self._channel.is_open:
            self._run.pump(self)

    def write(self, items: list[Item]) -> range:
        """Publish *items* in few writes; return the numbers their confirms will have."""
        pieces: list[bytes] = []
        number, frame_max = self._channel.channel_number, self._client.frame_max
        size = 0
        for item in items:
            content_frames(pieces, number, item.method, item.properties, item.body, frame_max)
            size += len(item.body)
            if size > _WRITE_BYTES:  # Pika copies what the socket did not take of one write.
                self._client.send(b"".join(pieces))
                pieces, size = [], 0
        if pieces:
            self._client.send(b"".join(pieces))
        crash_point("publish.unconfirmed")
        first = self._count + 1
        self._count += len(items)
        return range(first, self._count + 1)

    def release(self) -> None:
        """Take another run, sooner or later.

        Not after a nack: a channel that met a quorum queue while its leader was dead may go on
        asking the dead node, and be refused for ever, when there is a new leader since long.
        """
        self._run = None
        if self._refused:
            self.close()
        elif self._channel.is_open and self._selected:
            self._connection.keep(self)

    def close(self) -> None:
        """Close the channel; pika's close is harmless here, nobody consumes on it."""
        if not (self._channel.is_closing or self._channel.is_closed):
            self._channel.close()

    def _on_open(self, channel: Any) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=self._on_selected)

    def _on_selected(self, _: Any) -> None:
        self._selected = True
        self.pump()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        if self._run is not None:
            crash_point("publish.answered")
            refused = method.NAME == "Basic.Nack"
            self._refused |= refused
            outcome = _NACKED if refused else SENT
            self._run.confirmed(method.delivery_tag, method.multiple, outcome)
            self.pump()

    def _on_return(self, _: Any, method: Any, properties: bytes, __: bytes) -> None:
        if self._run is not None:
            message_id = (decode_properties(properties).message_id or b"").decode(errors="replace")
            self._run.returned(
                message_id,
                method.routing_key,
                f"no queue is bound to exchange {method.exchange!r} for routing key "
                f"{method.routing_key!r} ({method.reply_code} {method.reply_text})",
            )

    def _on_close(self, _: Any, cause: BaseException) -> None:
        self._connection.forget(self)
        if self._run is not None:
            self._run.fail(cause)
