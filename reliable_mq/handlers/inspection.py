"""From a function's signature to a :class:`HandlerCall`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from types import FrameType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from reliable_mq.errors import ConfigurationError
from reliable_mq.handlers import introspection
from reliable_mq.handlers.call import (
    ASYNC_DATABASE,
    SESSIONS,
    SYNC_DATABASE,
    HandlerCall,
    Injection,
    Source,
)
from reliable_mq.message import Delivery, Message, body_decoder, type_adapter

_EXACT: Mapping[type, Source] = {
    Connection: Source.CONNECTION,
    AsyncConnection: Source.ASYNC_CONNECTION,
    Message: Source.MESSAGE,
    Delivery: Source.DELIVERY,
}
_NAMES: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (Session, AsyncSession, Connection, AsyncConnection, Message, Delivery)
}
_INJECTABLE = ", ".join(source.value for source in Source)
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_PAYLOADS = "a pydantic model, a dataclass, dict, Any, bytes, Message, ..."


def inspect_handler(
    function: Callable[..., Any],
    *,
    frame: FrameType | None = None,
    mq_type: type | None = None,
) -> HandlerCall:
    """Return how to call *function*, or raise ``ConfigurationError`` with the remedy.

    *frame* is the caller of the decorator: names of string annotations resolve there too. It is
    not kept. *mq_type* is the class of the application object that parameters annotated with it,
    or with a base class of it, get.
    """
    return _Inspection(function, frame, mq_type).call()


def handler_error(name: str, problem: str) -> ConfigurationError:
    """Return the error that says what is wrong with the handler of that *name*."""
    return ConfigurationError(f"handler {name}: {problem}")


class _Inspection:
    """The state that the checks of one handler share."""

    def __init__(
        self, function: Callable[..., Any], frame: FrameType | None, mq_type: type | None
    ) -> None:
        self.function = function
        self.name = introspection.qualified_name(function)
        self.is_async = self._kind()
        self.mq_types = mq_type.__mro__[:-1] if mq_type is not None else ()
        known = {**_NAMES, **{cls.__name__: cls for cls in self.mq_types}}
        self.names = introspection.scope(function, frame, known)

    def call(self) -> HandlerCall:
        first, others = self._parameters()
        payload = self._payload_type(first)
        decoder = self._decoder(payload)
        injections = tuple(self._injections(others))
        self._check_sessions(injections)
        return HandlerCall(self.function, self.name, self.is_async, payload, injections, decoder)

    def _error(self, problem: str) -> ConfigurationError:
        return handler_error(self.name, problem)

    def _kind(self) -> bool:
        """Return whether a call gives a coroutine; refuse what is no handler at all."""
        if not callable(self.function):
            raise self._error("it cannot be called: decorate a function")
        target = introspection.outermost(self.function)
        if isinstance(target, type):
            raise self._error("a class is no handler: decorate a function or an instance's method")
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise self._error("a generator is no handler: it must not `yield`")
        return inspect.iscoroutinefunction(target)

    def _parameters(self) -> tuple[Parameter, Sequence[Parameter]]:
        try:
            signature: Signature = inspect.signature(self.function)
        except (NameError, TypeError, ValueError) as error:
            raise self._error(f"its signature cannot be read: {error}; wrap it in a def") from error
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].kind not in _POSITIONAL:
            raise self._error(
                "it has no positional parameter for the payload: make that the first one, "
                "as in `def handler(order: Order)`"
            )
        return parameters[0], parameters[1:]

    # --- the payload ----------------------------------------------------------------------------

    def _payload_type(self, first: Parameter) -> Any:
        if first.annotation is Parameter.empty:
            remedy = f"annotate the payload ({_PAYLOADS})"
            if first.name in {"self", "cls"}:
                remedy = "decorate the bound method, as in mq.handler(...)(service.method)"
            raise self._error(f"the first parameter {first.name!r} has no annotation: {remedy}")
        payload = self._resolve(first)
        self._check_members(first.name, payload)
        return payload

    def _check_members(self, name: str, payload: Any) -> None:
        members = introspection.members(payload)
        for member in members:
            source = self._source(member)
            if source not in (None, Source.MESSAGE):
                raise self._error(
                    f"the first parameter {name!r} is the payload, not a {source.value}: "
                    f"put the payload ({_PAYLOADS}) before it"
                )
            # The raw body: nothing would apply a constraint, and nothing tells it from another.
            if (member is bytes and payload is not bytes) or (
                member is Message and len(members) > 1
            ):
                raise self._error(
                    f"the payload {name!r} is the undecoded {member.__name__} or something else: "
                    f"annotate it with {member.__name__} alone"
                )

    def _decoder(self, payload: Any) -> Callable[[Message], Any]:
        try:
            if introspection.bare(payload) is Message:
                return body_decoder(Message)
            adapter = type_adapter(payload)
            if not adapter.pydantic_complete:
                adapter.rebuild(raise_errors=True, _types_namespace=self.names)
            return body_decoder(payload)
        except Exception as error:  # a type's own schema hooks raise what they like
            reason = str(error).split("\n", 1)[0]
            raise self._error(
                f"pydantic cannot build the payload type {payload!r}: {reason}. Use {_PAYLOADS} "
                "whose names are all defined before the handler is"
            ) from error

    # --- the other parameters ---------------------------------------------------------------------

    def _injections(self, parameters: Sequence[Parameter]) -> Iterator[Injection]:
        bound = _bound_by_keyword(self.function)
        for parameter in parameters:
            if parameter.kind in _VARIADIC or parameter.name in bound:
                continue
            injection = self._injection(parameter)
            if injection is not None:
                yield injection

    def _injection(self, parameter: Parameter) -> Injection | None:
        """Return how to fill *parameter*; None where its default stands."""
        try:
            return self._filled(parameter)
        except ConfigurationError:
            if parameter.default is Parameter.empty:
                raise
            return None

    def _filled(self, parameter: Parameter) -> Injection:
        name = parameter.name
        if parameter.annotation is Parameter.empty:
            raise self._error(
                f"nothing can fill parameter {name!r}, which has neither annotation nor default: "
                f"annotate it with one of {_INJECTABLE}, or give it a default"
            )
        asked = introspection.bare(self._resolve(parameter))
        source = self._source(asked)
        if source is None:
            raise self._error(
                f"nothing can fill parameter {name!r} of type {asked!r}: annotate it with one of "
                f"{_INJECTABLE}, or give it a default"
            )
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise self._error(
                f"parameter {name!r} is filled by name but is positional-only: move the '/' to "
                "directly behind the payload, or remove it"
            )
        return Injection(name, source, asked)

    def _source(self, asked: Any) -> Source | None:
        if not isinstance(asked, type):
            return None
        if issubclass(asked, Session):
            return Source.SESSION
        if issubclass(asked, AsyncSession):
            return Source.ASYNC_SESSION
        return Source.MQ if asked in self.mq_types else _EXACT.get(asked)

    def _resolve(self, parameter: Parameter) -> Any:
        try:
            return introspection.resolve(parameter.annotation, self.names)
        except Exception as error:  # evaluating an annotation may run any code
            raise self._error(
                f"the annotation {parameter.annotation!r} of parameter {parameter.name!r} cannot "
                f"be resolved ({error}): define or import its names before the handler, and not "
                "only under TYPE_CHECKING"
            ) from error

    def _check_sessions(self, injections: Sequence[Injection]) -> None:
        wrong = SYNC_DATABASE if self.is_async else ASYNC_DATABASE
        for injection in injections:
            if injection.source in wrong:
                raise self._wrong_side(injection)
        sessions = {i.type: i.parameter for i in injections if i.source in SESSIONS}
        if len(sessions) > 1:
            raise self._error(
                f"the parameters {' and '.join(map(repr, sessions.values()))} ask for different "
                "session classes, but a handler has one transaction: use one class"
            )

    def _wrong_side(self, injection: Injection) -> ConfigurationError:
        asked = injection.source.value
        if self.is_async:
            return self._error(
                f"parameter {injection.parameter!r} asks for the blocking {asked}, but the "
                f"handler is async: use Async{asked}, or a plain def"
            )
        return self._error(
            f"parameter {injection.parameter!r} asks for {asked}, but the handler is not async: "
            f"use {asked.removeprefix('Async')}, or make it `async def`"
        )


def _bound_by_keyword(function: Callable[..., Any]) -> set[str]:
    """Return the parameters that a ``functools.partial`` has given a value: not ours to fill."""
    return {
        name
        for layer in introspection.layers(function)
        if isinstance(layer, functools.partial)
        for name in layer.keywords
    }
