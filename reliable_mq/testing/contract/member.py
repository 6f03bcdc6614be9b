"""A consumer in a process of its own, to be killed.

Run as ``python -m reliable_mq.testing.contract.member``.

The first line of standard input says what to join, each further line is a command: ``ack``
(everything ever received, lost or not), ``stop, then ack`` (the same, as the first thing it does
when it goes on after a SIGSTOP), ``close``. The end of the input ends the process, so that it
never outlives the test. What happens is written to a history file: ``ready``,
``deliver``, ``lost``, ``ack``, ``error``, ``closed``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from reliable_mq.adapter import Adapter, AdapterContext, Received, TopicSpec
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.history import History
from reliable_mq.testing.contract.messages import id_of, key_of
from reliable_mq.testing.contract.readers import Reader

_END = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a member process joins. ``ack``: how many deliveries it acknowledges by itself."""

    url: str
    history: str
    topics: list[str]
    group: str
    instance: str
    ordered: bool = False
    prefetch: int = 500
    ack: int = 0
    lease: float = 10.0
    max_message_bytes: int = 1_000_000
    database_url: str | None = None
    client_options: dict[str, Any] = field(default_factory=dict)
    specs: list[dict[str, Any]] = field(default_factory=list)

    def to_line(self) -> str:
        """Return the task as the first line of a member's input."""
        return json.dumps(asdict(self)) + "\n"

    def context(self) -> AdapterContext:
        """Return the context of the member's adapter."""
        specs = [TopicSpec(**spec) for spec in self.specs]
        return AdapterContext(
            instance=self.instance,
            topics={spec.name: spec for spec in specs},
            client_options=self.client_options,
            lease=self.lease,
            max_message_bytes=self.max_message_bytes,
            store=self._store(),
        )

    def _store(self) -> Any:
        if self.database_url is None:
            return None
        from reliable_mq.testing.contract.stores import open_store

        return open_store(self.database_url)


class Member:
    """The member's loop: commands first, then one step of receiving."""

    def __init__(self, task: Task, adapter: Adapter, history: History) -> None:
        self._task = task
        self._history = history
        self._left_to_ack = task.ack
        self._commands: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = Reader(
            adapter.subscribe(task.topics, task.group, prefetch=task.prefetch, ordered=task.ordered)
        )

    def run(self, commands: TextIO) -> None:
        """Serve until told to close, or until *commands* ends."""
        threading.Thread(target=self._listen, args=(commands,), daemon=True).start()
        self._history.write("ready")
        while True:
            command = self._next_command()
            if command == _END:
                os._exit(0)  # The test is gone; nothing here is worth a clean end.
            if command == "close":
                return self._close()
            try:
                self._serve(command)
            except ReliableMQError as error:
                self._history.write("error", type=type(error).__name__, err=str(error))

    def _listen(self, commands: TextIO) -> None:
        for line in commands:
            self._commands.put(line.strip())
        self._commands.put(_END)

    def _next_command(self) -> str | None:
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def _serve(self, command: str | None) -> None:
        if command == "stop, then ack":
            os.kill(os.getpid(), signal.SIGSTOP)
        if command in ("ack", "stop, then ack"):
            self._ack_everything()
        lost = len(self._reader.lost)
        deliveries = self._reader.step()
        for loss in self._reader.lost[lost:]:
            self._history.write("lost", partition=loss.partition, epoch=loss.epoch)
        for delivery in deliveries:
            self._note(delivery)
        self._ack_first(deliveries)

    def _ack_everything(self) -> None:
        received = list(self._reader.received)
        try:
            self._reader.ack_and_flush(received)
        except TransportError as error:
            # The connection may have ended while this process stood still, and flush says so.
            self._history.write("error", type=type(error).__name__, err=str(error))
        self._history.write("ack", count=len(received))

    def _note(self, delivery: Received) -> None:
        self._history.write(
            "deliver",
            id=id_of(delivery),
            key=key_of(delivery),
            body=delivery.raw.body[:64].decode(errors="replace"),
            partition=delivery.partition,
            epoch=delivery.epoch,
        )

    def _ack_first(self, deliveries: list[Received]) -> None:
        done = deliveries[: self._left_to_ack]
        if done:
            self._reader.ack_and_flush(done)
            self._left_to_ack -= len(done)
            self._history.write("ack", count=len(done))

    def _close(self) -> None:
        self._reader.close()
        self._history.write("closed")


def main() -> None:
    """Run the member that standard input describes."""
    task = Task(**json.loads(sys.stdin.readline()))
    history = History(Path(task.history))
    adapter = open_adapter(task.url, task.context())
    Member(task, adapter, history).run(sys.stdin)
    adapter.close()
    history.close()


if __name__ == "__main__":
    main()
