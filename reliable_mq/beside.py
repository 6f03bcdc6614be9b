"""Work on a thread of its own, while its caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T], name: str) -> Future[T]:
    """Return at once what will be the result of *work*, or its error.

    The thread is a daemon: what never answers must not keep the process from its end.
    """
    done: Future[T] = Future()
    threading.Thread(target=_run, args=(work, done), name=name, daemon=True).start()
    return done


def _run(work: Callable[[], T], done: Future[T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        done.set_exception(error)
    else:
        done.set_result(result)
