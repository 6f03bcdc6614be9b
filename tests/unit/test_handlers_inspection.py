"""What the library reads from a handler: how to call it, what to give it, and what it refuses."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NewType, Optional

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session
from typing_extensions import TypeAliasType, TypedDict

from reliable_mq.errors import ConfigurationError, DecodeError
from reliable_mq.handlers import HandlerCall, Injection, Source, inspect_handler
from reliable_mq.message import Delivery, Message
from tests.unit import handler_samples as samples
from tests.unit.handler_samples import Order


class ReliableMQ:
    """Stands for the application object: inspection gets its class and asks nothing more."""


class OurMQ(ReliableMQ):
    pass


class ShopSession(Session):
    pass


class ShopAsyncSession(AsyncSession):
    pass


class ShopConnection(Connection):
    pass


def inspected(function: Callable[..., Any]) -> HandlerCall:
    return inspect_handler(function, frame=sys._getframe(1), mq_type=ReliableMQ)


def sources(call: HandlerCall) -> dict[str, Source]:
    return {injection.parameter: injection.source for injection in call.injections}


def refusal(function: Callable[..., Any]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        inspect_handler(function, frame=sys._getframe(1), mq_type=ReliableMQ)
    return str(refused.value)


def message(body: bytes = b'{"id": 1}') -> Message:
    return Message(id="1", topic="orders", body=body)


# --- what is called ------------------------------------------------------------------------------


def test_a_function():
    def charge(order: Order, session: Session) -> None: ...

    call = inspected(charge)
    assert call.function is charge
    assert call.payload_type is Order
    assert not call.is_async
    assert call.injections == (Injection("session", Source.SESSION, Session),)


def test_an_async_function():
    async def charge(order: Order, session: AsyncSession) -> None: ...

    call = inspected(charge)
    assert call.is_async
    assert call.injections == (Injection("session", Source.ASYNC_SESSION, AsyncSession),)


@pytest.mark.parametrize(
    ("function", "is_async", "injected"),
    [
        (samples.Service().handle, False, {"session": Source.SESSION}),
        (samples.Service().handle_async, True, {"session": Source.ASYNC_SESSION}),
        (samples.Service.handle_class, False, {}),
        (samples.Service.handle_static, False, {"session": Source.SESSION}),
        (samples.Service.__dict__["handle_static"], False, {"session": Source.SESSION}),
        (samples.Service.__dict__["handle_async_static"], True, {"session": Source.ASYNC_SESSION}),
        (samples.Sync(), False, {"session": Source.SESSION}),
        (samples.Async(), True, {"session": Source.ASYNC_SESSION}),
        (functools.partial(samples.Service().handle), False, {"session": Source.SESSION}),
        (functools.partial(samples.Async()), True, {"session": Source.ASYNC_SESSION}),
        (functools.partial(samples.everything_async, connection=None), True,  # type: ignore[arg-type]
         {"session": Source.ASYNC_SESSION, "delivery": Source.DELIVERY}),
        (samples.logged(samples.Service().handle), False, {"session": Source.SESSION}),
    ],
)  # fmt: skip
def test_methods_objects_and_partials_with_string_annotations(function, is_async, injected):
    call = inspected(function)
    assert (call.payload_type, call.is_async, sources(call)) == (Order, is_async, injected)


def test_a_partial_that_binds_the_first_parameter_leaves_the_second_as_payload():
    def charge(rate: float, order: Order, session: Session) -> None: ...

    call = inspected(functools.partial(charge, 0.5))
    assert (call.payload_type, sources(call)) == (Order, {"session": Source.SESSION})


def test_what_a_partial_binds_by_name_is_not_filled_again():
    bound: Any = object()
    seen: list[Any] = []

    def charge(order: Order, delivery: Delivery, message: Message) -> None:
        seen.append((delivery, message))

    call = inspected(functools.partial(charge, delivery=bound))
    assert sources(call) == {"message": Source.MESSAGE}
    call.invoke(Order(id=1), call.arguments(lambda injection: injection.source))
    assert seen == [(bound, Source.MESSAGE)]


def test_a_decorators_wrapper_decides_whether_the_handler_is_async():
    async def inner(order: Order) -> None: ...

    @functools.wraps(inner)
    def blocking(order: Order) -> None:
        asyncio.run(inner(order))

    assert not inspected(blocking).is_async


def test_the_signature_of_a_wrapped_function_counts():
    @samples.logged
    def charge(order: Order, session: Session, flag: bool = False) -> None: ...

    assert sources(inspected(charge)) == {"session": Source.SESSION}


def test_a_signature_that_a_dependency_injection_library_sets_is_honoured():
    def charge(order: Order, session: Session, clock: object) -> None: ...

    @functools.wraps(charge)
    def injected(order: Order, session: Session) -> None:
        charge(order, session, clock=object())

    parameters = list(inspect.signature(charge).parameters.values())[:2]
    injected.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call = inspected(injected)
    assert (call.payload_type, sources(call)) == (Order, {"session": Source.SESSION})


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (samples.raw_message, "tests.unit.handler_samples.raw_message"),
        (samples.Service().handle, "tests.unit.handler_samples.Service.handle"),
        (samples.Sync(), "tests.unit.handler_samples.Sync"),
        (samples.logged(samples.quoted), "tests.unit.handler_samples.quoted"),
        (functools.partial(samples.everything_sync, connection="CANARY"),  # type: ignore[arg-type]
         "tests.unit.handler_samples.everything_sync"),
    ],
)  # fmt: skip
def test_the_name_is_the_qualified_one_and_never_shows_bound_values(function, name):
    assert inspected(function).name == name


# --- what it is called with ----------------------------------------------------------------------


def test_everything_that_can_be_injected_into_a_sync_handler():
    def handle(
        order: Order,
        session: Session,
        connection: Connection,
        message: Message,
        delivery: Delivery,
        mq: ReliableMQ,
    ) -> None: ...

    call = inspected(handle)
    assert sources(call) == {
        "session": Source.SESSION,
        "connection": Source.CONNECTION,
        "message": Source.MESSAGE,
        "delivery": Source.DELIVERY,
        "mq": Source.MQ,
    }
    assert call.database == (Source.SESSION, Source.CONNECTION)
    assert call.session_type is Session


def test_everything_that_can_be_injected_into_an_async_handler():
    async def handle(
        order: Order, *, session: AsyncSession, connection: AsyncConnection, mq: ReliableMQ
    ) -> None: ...

    call = inspected(handle)
    assert call.database == (Source.ASYNC_SESSION, Source.ASYNC_CONNECTION)
    assert call.session_type is AsyncSession


def test_a_handler_that_asks_for_nothing_uses_no_database():
    def handle(order: Order) -> None: ...

    call = inspected(handle)
    assert (call.injections, call.database, call.session_type) == ((), (), None)


def test_a_subclass_of_a_session_is_what_the_handler_gets():
    def handle(order: Order, session: ShopSession) -> None: ...
    async def handle_async(order: Order, session: ShopAsyncSession) -> None: ...

    assert inspected(handle).session_type is ShopSession
    assert inspected(handle_async).session_type is ShopAsyncSession


def test_an_application_class_of_its_own_is_injected_under_it_and_under_its_base():
    def handle(order: Order, mq: OurMQ, base: ReliableMQ) -> None: ...

    call = inspect_handler(handle, frame=inspect.currentframe(), mq_type=OurMQ)
    assert sources(call) == {"mq": Source.MQ, "base": Source.MQ}


Db = TypeAliasType("Db", Annotated[Session, "from somewhere"])


def test_annotated_optional_and_aliases_are_seen_through():
    def handle(
        order: Order,
        one: Annotated[Session, "note"],
        two: Optional[Session],  # noqa: UP045 - the old spelling too
        three: Session | None,
        four: Db,
        five: Annotated[Delivery | None, "note"],
    ) -> None: ...

    assert sources(inspected(handle)) == {
        "one": Source.SESSION,
        "two": Source.SESSION,
        "three": Source.SESSION,
        "four": Source.SESSION,
        "five": Source.DELIVERY,
    }


def test_what_has_a_default_and_cannot_be_filled_is_left_alone():
    def handle(
        order: Order,
        session: Session = None,  # type: ignore[assignment]
        flag: bool = False,
        untyped=None,
        *args: int,
        keyword: str = "",
        **options: object,
    ) -> None: ...

    assert sources(inspected(handle)) == {"session": Source.SESSION}


def test_the_payload_may_be_positional_only():
    def handle(order: Order, /, session: Session) -> None: ...

    assert sources(inspected(handle)) == {"session": Source.SESSION}


def test_the_payload_goes_first_and_everything_else_by_name():
    seen: list[Any] = []

    def handle(order: Order, /, delivery: Delivery, *, session: Session) -> str:
        seen.append((order, delivery, session))
        return "done"

    call = inspected(handle)
    arguments = call.arguments(lambda injection: injection.type.__name__)
    assert arguments == {"delivery": "Delivery", "session": "Session"}
    assert call.invoke(Order(id=1), arguments) == "done"
    assert seen == [(Order(id=1), "Delivery", "Session")]


def test_parameters_that_ask_for_the_same_get_the_same():
    def handle(order: Order, one: Session, two: Session, connection: Connection) -> None: ...

    asked = []

    def provide(injection: Injection) -> object:
        asked.append(injection.parameter)
        return object()

    arguments = inspected(handle).arguments(provide)
    assert asked == ["one", "connection"]
    assert arguments["one"] is arguments["two"] is not arguments["connection"]


def test_an_async_handler_gives_what_is_to_be_awaited():
    async def handle(order: Order) -> int:
        return order.id

    assert asyncio.run(inspected(handle).invoke(Order(id=7), {})) == 7


def test_a_sync_handler_that_returns_an_awaitable_has_failed():
    async def inner(order: Order) -> None: ...

    @functools.wraps(inner)
    def handle(order: Order) -> object:
        return inner(order)

    call = inspected(handle)
    with pytest.raises(ConfigurationError, match=r"returned an awaitable \(coroutine\)"):
        call.invoke(Order(id=1), {})


def test_what_a_handler_raises_passes_through():
    def handle(order: Order) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        inspected(handle).invoke(Order(id=1), {})


# --- names in string annotations -----------------------------------------------------------------


def test_our_own_names_resolve_even_if_imported_for_type_checkers_only():
    call = inspected(samples.everything_sync)
    assert sources(call) == {
        "session": Source.SESSION,
        "connection": Source.CONNECTION,
        "message": Source.MESSAGE,
        "delivery": Source.DELIVERY,
    }
    assert inspected(samples.raw_message).payload_type is Message


def test_the_application_class_resolves_by_its_name_and_by_that_of_its_base():
    namespace: dict[str, Any] = {"Order": Order}
    exec(  # noqa: S102 - a module that has not imported the names
        "from __future__ import annotations\n"
        "def handle(order: Order, mq: ReliableMQ, ours: OurMQ): ...",
        namespace,
    )
    call = inspect_handler(namespace["handle"], mq_type=OurMQ)
    assert sources(call) == {"mq": Source.MQ, "ours": Source.MQ}


def test_a_type_of_the_function_that_decorates_resolves():
    class Local(BaseModel):
        id: int

    def handle(order: Local, other: list[Local] | None = None) -> None: ...

    assert inspected(handle).payload_type is Local


def test_a_type_that_only_the_closure_holds_resolves():
    def make() -> Callable[..., Any]:
        class Local(BaseModel):
            id: int

        def handle(order: Local) -> object:
            return Local

        return handle

    handle = make()
    assert inspected(handle).payload_type is handle(Order(id=1))


def test_locals_hide_globals_of_the_same_name_as_in_any_python_code():
    class Order(BaseModel):
        other: str

    def handle(order: Order) -> None: ...

    assert inspected(handle).payload_type is Order


def test_a_function_of_another_module_keeps_its_own_names():
    class Order(BaseModel):
        other: str

    assert inspected(samples.everything_sync).payload_type is samples.Order


def test_a_name_that_only_the_decorating_code_has_resolves_there():
    class OnlyForTypeCheckers(BaseModel):
        id: int

    assert inspected(samples.unknown_payload).payload_type is OnlyForTypeCheckers


def test_a_wrapper_of_another_module_does_not_hide_the_handlers_names():
    class Order(BaseModel):
        other: str

    @samples.logged
    def handle(order: Order) -> None: ...

    assert inspected(handle).payload_type is Order


def test_quoted_names_inside_of_generics_resolve():
    def handle(orders, more=None): ...

    handle.__annotations__["orders"] = list["Order"]
    assert inspected(handle).payload_type == list[Order]
    handle.__annotations__["orders"] = "dict[str, 'Order'] | None"
    assert inspected(handle).payload_type == dict[str, Order] | None


def test_the_frame_is_not_kept():
    class Local(BaseModel):
        id: int

    def handle(order: Local) -> None: ...

    frame = sys._getframe()
    call = inspect_handler(handle, frame=frame)
    assert frame not in _reachable(call)


def _reachable(start: object) -> list[object]:
    import gc

    seen: list[object] = []
    pending = [start]
    while pending and len(seen) < 200:
        item = pending.pop()
        seen.append(item)
        if isinstance(item, (HandlerCall, tuple, functools.partial)) or inspect.isfunction(item):
            pending += [r for r in gc.get_referents(item) if not isinstance(r, (dict, type))]
    return seen


# --- payloads ------------------------------------------------------------------------------------


@dataclass
class Line:
    sku: str


class Item(TypedDict):
    sku: str


class Deferred(BaseModel):
    model_config = ConfigDict(defer_build=True)
    id: int


Sku = NewType("Sku", str)


@pytest.mark.parametrize(
    ("annotation", "body", "expected"),
    [
        (Order, b'{"id": 1}', Order(id=1)),
        (Line, b'{"sku": "a"}', Line("a")),
        (Item, b'{"sku": "a"}', {"sku": "a"}),
        (Deferred, b'{"id": 1}', Deferred(id=1)),
        (int, b"1", 1),
        (Sku, b'"a"', "a"),
        (Order | Line, b'{"sku": "a"}', Line("a")),
        (list[Order], b'[{"id": 1}]', [Order(id=1)]),
        (Any, b'{"a": [1]}', {"a": [1]}),
        (dict, b'{"a": [1]}', {"a": [1]}),
        (object, b"[]", []),
        (None, b"null", None),
        (bytes, b"\xff", b"\xff"),
    ],
)
def test_the_payload_is_decoded_as_annotated(annotation, body, expected):
    def handle(payload): ...

    handle.__annotations__["payload"] = annotation
    assert inspected(handle).payload(message(body)) == expected


@pytest.mark.parametrize("annotation", [Message, Annotated[Message, "note"], Message | None])
def test_a_handler_of_messages_gets_the_message_itself(annotation):
    def handle(payload): ...

    handle.__annotations__["payload"] = annotation
    raw = message(b"\xff")
    assert inspected(handle).payload(raw) is raw


def test_a_body_that_does_not_fit_is_a_decode_error():
    def handle(order: Order) -> None: ...

    with pytest.raises(DecodeError, match="id: Field required"):
        inspected(handle).payload(message(b"{}"))


def test_a_local_type_may_refer_to_another_local_type():
    class Part(BaseModel):
        id: int

    @dataclass
    class Whole:
        parts: list[Part]

    def handle(whole: Whole) -> None: ...

    assert inspected(handle).payload(message(b'{"parts": [{"id": 1}]}')) == Whole([Part(id=1)])


# --- what is refused -----------------------------------------------------------------------------


def test_a_class_is_refused():
    class Handler:
        def __init__(self, order: Order) -> None: ...

    for function in (Handler, functools.partial(Handler)):
        assert "a class is no handler: decorate a function or an instance" in refusal(function)


@pytest.mark.parametrize("value", [None, 5, "charge", classmethod(lambda cls, order: None)])
def test_what_cannot_be_called_is_refused(value):
    assert "cannot be called" in refusal(value)


def test_generators_of_both_kinds_are_refused_in_every_disguise():
    def generator(order: Order):
        yield

    async def async_generator(order: Order):
        yield

    class Generates:
        def __call__(self, order: Order):
            yield

    for function in (generator, async_generator, Generates(), functools.partial(generator)):
        assert "a generator is no handler: it must not `yield`" in refusal(function)


def test_a_function_whose_signature_cannot_be_read_is_refused():
    class Unreadable:
        def __call__(self, order: Order) -> None: ...

        @property
        def __signature__(self) -> inspect.Signature:
            raise NameError("name 'Later' is not defined")

    assert "signature cannot be read" in refusal(min)
    assert "signature cannot be read: name 'Later' is not defined" in refusal(Unreadable())


@pytest.mark.parametrize(
    "function",
    [lambda: None, lambda *args: None, lambda **kwargs: None, lambda *, order: None, print],
    ids=["none", "*args", "**kwargs", "keyword-only", "print"],
)
def test_a_handler_without_a_positional_parameter_is_refused(function):
    assert "no positional parameter for the payload" in refusal(function)


def test_a_payload_without_annotation_is_refused_with_what_it_can_be():
    def handle(order, session: Session) -> None: ...

    text = refusal(handle)
    assert "'order' has no annotation" in text
    assert "a pydantic model, a dataclass, dict, Any, bytes, Message" in text


def test_a_method_decorated_inside_of_its_class_is_told_to_be_bound():
    assert "decorate the bound method" in refusal(samples.Service.handle)


@pytest.mark.parametrize(
    "annotation", [Session, AsyncSession, Connection, Delivery, ReliableMQ, Session | None]
)
def test_something_injectable_in_the_place_of_the_payload_is_refused(annotation):
    def handle(first): ...

    handle.__annotations__["first"] = annotation
    assert re.search(r"'first' is the payload, not a \w+: put the payload", refusal(handle))


@pytest.mark.parametrize(
    "annotation", [bytes | Order, Order | Message, bytes | None, Annotated[bytes, "avro"]]
)
def test_a_raw_payload_mixed_with_anything_else_is_refused(annotation):
    def handle(payload): ...

    handle.__annotations__["payload"] = annotation
    assert "alone" in refusal(handle)


class Plain:
    pass


class Unfinished(BaseModel):
    later: DefinedLater  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("annotation", [Plain, list[Plain], Unfinished, 5, object()])
def test_a_payload_that_pydantic_cannot_build_is_refused(annotation):
    def handle(order): ...

    handle.__annotations__["order"] = annotation
    text = refusal(handle)
    assert "pydantic cannot build the payload type" in text
    assert "\n" not in text


def test_a_payload_whose_name_cannot_be_resolved_is_refused_with_the_reason():
    text = refusal(samples.unknown_payload)
    assert "'OnlyForTypeCheckers' of parameter 'order' cannot be resolved" in text
    assert "name 'OnlyForTypeCheckers' is not defined" in text
    assert "not only under TYPE_CHECKING" in text


def test_another_parameter_whose_name_cannot_be_resolved_matters_only_without_a_default():
    assert inspected(samples.unknown_optional).injections == ()
    assert "'extra' cannot be resolved" in refusal(samples.unknown_required)


@pytest.mark.parametrize("annotation", ["1 +", "1 / 0", "Order.missing", "undefined[int]"])
def test_an_annotation_that_fails_to_evaluate_is_refused(annotation):
    def handle(order): ...

    handle.__annotations__["order"] = annotation
    assert "cannot be resolved" in refusal(handle)


@pytest.mark.parametrize(
    "annotation",
    [str, Order, scoped_session, ShopConnection, Session | AsyncSession, list[Session]],
)
def test_a_parameter_that_nothing_can_fill_is_refused_with_what_can_be_filled(annotation):
    def handle(order: Order, other): ...

    handle.__annotations__["other"] = annotation
    text = refusal(handle)
    assert "nothing can fill parameter 'other'" in text
    assert (
        "Session, Connection, AsyncSession, AsyncConnection, Message, Delivery, ReliableMQ" in text
    )


def test_a_parameter_without_annotation_and_default_is_refused():
    def handle(order: Order, other): ...

    assert "'other', which has neither annotation nor default" in refusal(handle)


def test_an_application_class_that_is_not_ours_is_refused():
    def handle(order: Order, mq: OurMQ) -> None: ...

    assert "nothing can fill parameter 'mq'" in refusal(handle)


def test_an_injected_parameter_that_is_positional_only_is_refused():
    def handle(order: Order, session: Session, /) -> None: ...

    assert "'session' is filled by name but is positional-only" in refusal(handle)


@pytest.mark.parametrize("annotation", [Session, Connection, ShopSession, Annotated[Session, ""]])
def test_a_blocking_session_in_an_async_handler_is_refused_with_or_without_a_default(annotation):
    async def handle(order: Order, session): ...
    async def with_default(order: Order, session=None): ...

    for function in (handle, with_default):
        function.__annotations__["session"] = annotation
        assert re.search(
            "asks for the blocking (Session|Connection), .*use Async", refusal(function)
        )


@pytest.mark.parametrize("annotation", [AsyncSession, AsyncConnection, ShopAsyncSession])
def test_an_async_session_in_a_sync_handler_is_refused(annotation):
    def handle(order: Order, session): ...

    handle.__annotations__["session"] = annotation
    assert re.search(r"asks for Async\w+, but the handler is not async: use", refusal(handle))


def test_two_session_classes_in_one_handler_are_refused():
    def handle(order: Order, one: Session, two: ShopSession) -> None: ...

    assert "'one' and 'two' ask for different session classes" in refusal(handle)


def test_a_refusal_names_the_handler():
    assert refusal(samples.unknown_payload).startswith(
        "handler tests.unit.handler_samples.unknown_payload: "
    )
