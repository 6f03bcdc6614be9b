"""Pika's log records about our connections, demoted.

Pika warns of every channel that the broker closes, which here is how a missing queue is found out
and how an ordered partition is handed over, and reports each failed attempt to connect with a
stack trace. The adapter turns all of that into outcomes and errors of its own; for those who
debug, the records stay, at the level DEBUG.
"""

from __future__ import annotations

import logging
import threading

_LOGGERS = (
    "pika.adapters.base_connection",
    "pika.adapters.utils.connection_workflow",
    "pika.adapters.utils.io_services_utils",
    "pika.callback",
    "pika.channel",
    "pika.connection",
)
_ours: set[int] = set()


class _Demote(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread not in _ours or record.levelno <= logging.DEBUG:
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


_FILTER = _Demote()


def demote_records_of_this_thread() -> None:
    """Have pika's records of the calling thread demoted; other users of pika keep theirs."""
    _ours.add(threading.get_ident())
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)


def forget_this_thread() -> None:
    """End that: the thread's number may be given to another thread."""
    _ours.discard(threading.get_ident())
