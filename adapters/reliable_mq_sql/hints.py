"""Hints between processes that a topic has new entries: on PostgreSQL, elsewhere there are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from reliable_mq.store import Store
from reliable_mq.wakeup import Hints, Listener, channel_of, digest


class LogHints:
    """Tells other processes which topics have new entries, and hears it from them. Thread-safe.

    Nothing is opened before it is needed: the first publish starts the one thread, the first
    receive the other. A hint may be lost, and costs its publish nothing.
    """

    def __init__(
        self, store: Store, instance: str, *, wake: Callable[[Callable[[str], bool]], None]
    ) -> None:
        """*wake* is called with a function that tells which topics to look at."""
        channel = channel_of(store.tables.topic_log)
        self._instance = instance
        self._wake = wake
        self._hints = Hints(store, channel)
        self._listener = Listener(store, channel, self._heard)

    def send(self, topics: Iterable[str]) -> None:
        """Tell other processes soon that *topics* have new entries."""
        sender = self._sender()
        for topic in topics:
            self._hints.send(f"{sender} {digest(topic)}")

    def listen(self) -> None:
        """Hear what others tell, from now on until :meth:`close`. Idempotent, returns at once."""
        self._listener.start()

    def close(self) -> None:
        """End the threads; blocks as long as a hint that is on its way, seconds at most."""
        self._hints.stop()
        self._listener.stop()
        self._hints.close()
        self._listener.close()

    def _heard(self, hint: str) -> None:
        sender, _, hinted = hint.partition(" ")
        if not hinted:
            self._wake(lambda topic: True)
        elif sender != self._sender():  # This process has woken its subscriptions already.
            self._wake(lambda topic: digest(topic) == hinted)

    def _sender(self) -> str:
        # A forked process has its parent's instance, and subscriptions of its own.
        return digest(f"{self._instance} {os.getpid()}")
