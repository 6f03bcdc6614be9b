"""What an exactly-once handler publishes, until its transaction takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from reliable_mq.errors import NoTransactionError
from reliable_mq.message import Message
from reliable_mq.store import Store, current


@dataclass(eq=False, slots=True)
class Outputs:
    """The messages of one attempt, in order. Any thread or task of the handler may append."""

    instance: str
    outer: current.Entry | None
    messages: list[Message] = field(default_factory=list)
    ended: bool = False

    def append(self, message: Message) -> None:
        """Take *message*; ``NoTransactionError`` once the handler has ended."""
        if self.ended:
            raise NoTransactionError(
                "the exactly-once handler this code was started in has ended, and its "
                "transaction with it: await or join what publishes before you return"
            )
        self.messages.append(message)


_current: ContextVar[Outputs | None] = ContextVar("reliable_mq_outputs", default=None)


@contextmanager
def collecting(store: Store, instance: str) -> Iterator[Outputs]:
    """Collect what the application of *instance* publishes in the block."""
    outputs = Outputs(instance, current.innermost(store))
    before = _current.get()
    _current.set(outputs)
    try:
        yield outputs
    finally:
        outputs.ended = True
        # Not by a token: a framework may leave in another context than it entered.
        _current.set(before)


def collector(store: Store, instance: str) -> Outputs | None:
    """Return what takes a message published here without a session, if it is no database.

    A transaction on the database that the handler has opened itself is nearer, and wins.
    """
    outputs = _current.get()
    if outputs is None or outputs.instance != instance:
        return None
    return outputs if current.innermost(store) is outputs.outer else None
