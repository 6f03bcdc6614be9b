"""What an annotation means, also where it is a string, and which function it belongs to."""

from __future__ import annotations

import functools
import inspect
import typing
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, FunctionType, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

Function = Callable[..., Any]


def layers(function: Function) -> Iterator[Function]:
    """Yield *function* and then, outermost first, what it calls in the end.

    Follows ``functools.partial``, bound methods, callable objects and ``__wrapped__``.
    """
    seen: set[int] = set()
    while id(function) not in seen:
        seen.add(id(function))
        yield function
        function = _next_layer(function)


def _next_layer(function: Function) -> Function:
    if isinstance(function, functools.partial):
        return function.func
    if inspect.ismethod(function):
        return function.__func__
    wrapped: Function | None = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        return wrapped
    return function if isinstance(function, FunctionType) else _call_of(function)


def _call_of(function: Function) -> Function:
    call: Function = getattr(type(function), "__call__", function)  # noqa: B004 - not a test
    return call if isinstance(call, FunctionType) else function


def outermost(function: Function) -> Function:
    """Return the plain function that runs first, for questions about its kind.

    Unlike :func:`layers` it stops at a decorator's wrapper: whether a call gives an awaitable
    is the wrapper's doing.
    """
    while not isinstance(function, FunctionType):
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif isinstance(function, staticmethod):
            function = function.__wrapped__
        elif (call := _call_of(function)) is not function:
            function = call
        else:
            break
    return function


def qualified_name(function: Function) -> str:
    """Return module and qualified name; never a repr, which may show bound arguments."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else named.__qualname__


# --- names --------------------------------------------------------------------------------------


def scope(
    function: Function, frame: FrameType | None, known: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the names that annotations of *function* can use.

    In this order: for each function of its layers, innermost first, its closure and globals;
    then what *frame*, the caller of the decorator, sees; then *known*. The locals of *frame* come
    before the globals of a function that is written inside it, as for any name in Python.
    """
    maps: list[Mapping[str, Any]] = []
    for layer in reversed([f for f in layers(function) if isinstance(f, FunctionType)]):
        maps.append(_closure(layer))
        if frame is not None and _encloses(frame, layer):
            maps.append(dict(frame.f_locals))
        maps.append(layer.__globals__)
    if frame is not None:
        maps += [dict(frame.f_locals), frame.f_globals]
    return ChainMap({}, *map(dict, maps), dict(known))


def _closure(function: FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # assigned after the decoration
            continue
    return found


def _encloses(frame: FrameType, function: FunctionType) -> bool:
    return any(constant is function.__code__ for constant in frame.f_code.co_consts)


def resolve(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Return *annotation* with every string in it evaluated.

    Raises whatever the evaluation raises, above all ``NameError``.
    """

    def probe() -> None: ...

    probe.__annotations__ = {"it": annotation}
    return typing.get_type_hints(probe, {}, names, include_extras=True)["it"]


# --- shapes -------------------------------------------------------------------------------------


def bare(annotation: Any) -> Any:
    """Return *annotation* without ``Annotated``, type aliases and ``| None``."""
    while True:
        inner = _without_one_wrapper(annotation)
        if inner is annotation:
            return annotation
        annotation = inner


def _without_one_wrapper(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    if type(annotation).__name__ == "TypeAliasType":  # of typing or of typing_extensions
        return annotation.__value__
    if get_origin(annotation) in (Union, UnionType):
        others = [member for member in get_args(annotation) if member is not NoneType]
        return others[0] if len(others) == 1 else annotation
    return annotation


def members(annotation: Any) -> list[Any]:
    """Return the bare members of a union, or the bare annotation alone."""
    annotation = bare(annotation)
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [each for member in get_args(annotation) for each in members(member)]
