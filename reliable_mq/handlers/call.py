"""One handler as the consumer calls it: the payload first, everything else by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from reliable_mq.errors import ConfigurationError
from reliable_mq.message import Message


class Source(Enum):
    """Where the value of an injected parameter comes from."""

    SESSION = "Session"
    CONNECTION = "Connection"
    ASYNC_SESSION = "AsyncSession"
    ASYNC_CONNECTION = "AsyncConnection"
    MESSAGE = "Message"
    DELIVERY = "Delivery"
    MQ = "ReliableMQ"


SESSIONS = frozenset({Source.SESSION, Source.ASYNC_SESSION})
SYNC_DATABASE = frozenset({Source.SESSION, Source.CONNECTION})
ASYNC_DATABASE = frozenset({Source.ASYNC_SESSION, Source.ASYNC_CONNECTION})
DATABASE = SYNC_DATABASE | ASYNC_DATABASE


@dataclass(frozen=True, slots=True)
class Injection:
    """A parameter the library fills.

    ``type`` is the class the annotation asks for: of the two sessions it may be a subclass, and
    an instance of exactly that class is what the handler expects.
    """

    parameter: str
    source: Source
    type: type


@dataclass(frozen=True, slots=True)
class HandlerCall:
    """How to call one handler. Immutable, usable by any number of threads at once.

    ``name`` is the qualified name, for logs. ``decoder`` turns a message into the payload.
    """

    function: Callable[..., Any]
    name: str
    is_async: bool
    payload_type: Any
    injections: tuple[Injection, ...]
    decoder: Callable[[Message], Any] = field(repr=False, compare=False)

    @property
    def database(self) -> tuple[Source, ...]:
        """The kinds of session and connection it asks for: all sync or all async, or none."""
        return tuple(dict.fromkeys(i.source for i in self.injections if i.source in DATABASE))

    @property
    def session_type(self) -> type | None:
        """The one session class it asks for, or None if it asks for none."""
        return next((i.type for i in self.injections if i.source in SESSIONS), None)

    def payload(self, message: Message) -> Any:
        """Return what the first parameter gets.

        Raises :class:`~reliable_mq.errors.DecodeError` where the body does not fit. An exception
        other than ``ValueError`` and ``AssertionError`` that a validator of the application's
        raises passes through: it may be gone at the next attempt.
        """
        return self.decoder(message)

    def arguments(self, provide: Callable[[Injection], Any]) -> dict[str, Any]:
        """Return the keyword arguments as *provide* gives them.

        It is asked once for what several parameters ask for: a handler has one session.
        """
        made: dict[type, Any] = {}
        for injection in self.injections:
            if injection.type not in made:
                made[injection.type] = provide(injection)
        return {injection.parameter: made[injection.type] for injection in self.injections}

    def invoke(self, payload: Any, arguments: Mapping[str, Any]) -> Any:
        """Call the handler; of an ``async def`` one return what is to be awaited.

        Whatever the handler raises passes through. A sync handler that returns an awaitable has
        done nothing yet and has failed: ``ConfigurationError``.
        """
        result = self.function(payload, **arguments)
        if result is not None and not self.is_async and inspect.isawaitable(result):
            self._refuse(result)
        return result

    def _refuse(self, result: Any) -> None:
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that it was never awaited
        raise ConfigurationError(
            f"handler {self.name}: it is not `async def` but returned an awaitable "
            f"({type(result).__name__}), which nobody awaits: make the outermost function "
            "`async def`"
        )
