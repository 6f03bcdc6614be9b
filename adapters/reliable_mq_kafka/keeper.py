"""A thread that serves clients while nobody uses them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

log = logging.getLogger("reliable_mq.kafka")

_EVERY = 1.0


class Keeper:
    """Calls each of *chores* at its start, and then every so many seconds until its end.

    librdkafka queues what it has to say until somebody polls: some twenty entries a second while
    its brokers are away. A process that seldom publishes would fill its memory with them.
    """

    def __init__(self, chores: Sequence[Callable[[], None]], *, every: float = _EVERY) -> None:
        self._chores = chores
        self._every = every
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start, unless it runs or has ended."""
        with self._lock:
            if self._thread is None and not self._end.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="reliable-mq-kafka-keeper", daemon=True
                )
                self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """End it for good; returns when it has ended, unless that is not waited for."""
        with self._lock:
            self._end.set()
        if wait and self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            for chore in self._chores:
                try:
                    chore()
                except Exception:
                    # Whoever uses that client will meet the error; the others still need care.
                    log.exception("an idle Kafka client could not be served")
            self._end.wait(self._every)
