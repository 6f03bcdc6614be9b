"""The application as a process of its own, to be killed, stopped and ended.

What it does is in the environment: ``E2E_TOPIC``, ``E2E_FOLDER`` for its history and its gates,
``E2E_GUARANTEE``, ``E2E_ORDERED`` and ``E2E_CRASH``. Tests import :func:`build` to go on where a
process ended.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from sqlalchemy import insert
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings

try:
    from tests.e2e.shop import effect
except ModuleNotFoundError:  # run as a script
    from shop import effect  # type: ignore[import-not-found,no-redef]

IN_HANDLER = "in the handler"
BEFORE_ACK = "before the acknowledgement"

RETRY = RetryPolicy(max_attempts=5, initial_delay=0.1, max_delay=0.1)


class Task(BaseModel):
    """*gate* is what the handler waits for; *fails* is how many attempts fail before that."""

    number: int
    gate: str | None = None
    fails: int = 0
    crash: bool = False


class Folder:
    """What processes tell the test, and the gates that it opens for them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._history = path / "history"
        self._gates = True

    def note(self, what: str, **values: Any) -> None:
        """Append a line in one write: it survives a SIGKILL that follows."""
        line = json.dumps({"what": what, "pid": os.getpid(), **values}) + "\n"
        descriptor = os.open(self._history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def notes(self, what: str, **values: Any) -> list[dict[str, Any]]:
        """Return the lines of this kind that have these values."""
        if not self._history.exists():
            return []
        lines = [json.loads(line) for line in self._history.read_text().splitlines()]
        wanted = {"what": what, **values}
        return [line for line in lines if wanted.items() <= line.items()]

    def open_gate(self, name: str) -> None:
        """Let handlers pass that wait at it, and those that come."""
        (self._path / f"gate-{name}").touch()

    def ignore_gates(self) -> None:
        """Let the handlers of this process pass all of them."""
        self._gates = False

    def wait_at_gate(self, name: str) -> None:
        """Return when it is open; give up after two minutes."""
        deadline = time.monotonic() + 120
        while self._gates and not (self._path / f"gate-{name}").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"gate {name} stayed shut")
            time.sleep(0.02)

    def first(self, name: str) -> bool:
        """Tell whether nobody asked this before."""
        try:
            (self._path / f"first-{name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def crash() -> NoReturn:
    """Die as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def build(
    topic: str, folder: Folder, *, guarantee: Any = None, ordered: bool = False, **settings: Any
) -> ReliableMQ:
    """Return the application; its settings come from the environment where none are given."""
    mq = ReliableMQ(Settings(group="billing", retry=RETRY, **settings))

    @mq.handler(topic, guarantee=guarantee, ordered=ordered, concurrency=2)
    def handle(task: Task, session: Session, delivery: Delivery) -> None:
        folder.note("call", number=task.number, attempt=delivery.attempt)
        if delivery.attempt <= task.fails:
            raise OSError("an injected failure")
        session.execute(insert(effect).values(what=str(task.number)))
        session.flush()
        if task.crash and os.environ.get("E2E_CRASH") == IN_HANDLER and folder.first("crash"):
            crash()
        if task.gate is not None:
            folder.note("gate", number=task.number, attempt=delivery.attempt)
            folder.wait_at_gate(task.gate)
            folder.note("gate-passed", number=task.number, attempt=delivery.attempt)

    return mq


def crash_before_ack(mq: ReliableMQ, folder: Folder) -> None:
    """Let the process die when it is about to acknowledge for the first time."""
    adapter: Any = mq._runtime.adapter
    subscribe = adapter.subscribe

    class Fatal:
        def __init__(self, subscription: Any) -> None:
            self._subscription = subscription

        def __getattr__(self, name: str) -> Any:
            return getattr(self._subscription, name)

        def ack(self, deliveries: Any) -> None:
            if deliveries and folder.first("crash"):
                crash()
            self._subscription.ack(deliveries)

    adapter.subscribe = lambda *args, **options: Fatal(subscribe(*args, **options))


def main() -> None:
    """Run until a signal."""
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    folder = Folder(Path(os.environ["E2E_FOLDER"]))
    mq = build(
        os.environ["E2E_TOPIC"],
        folder,
        guarantee=os.environ.get("E2E_GUARANTEE"),
        ordered=bool(os.environ.get("E2E_ORDERED")),
    )
    if os.environ.get("E2E_CRASH") == BEFORE_ACK:
        crash_before_ack(mq, folder)
    with mq:
        mq.run()


if __name__ == "__main__":
    main()
