"""Calling a handler: its arguments, and the application's ``around`` about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from reliable_mq.consumer.lanes import AnyContext, Lane
from reliable_mq.consumer.transaction import HandlerTransaction
from reliable_mq.crashpoints import crash_point
from reliable_mq.handlers import HandlerSpec, Injection, Source
from reliable_mq.message import Delivery

Told = Callable[[], Delivery]
"""Makes the Delivery of an attempt. Most handlers do not ask for it, and it costs what they do."""

_NOTHING: AbstractContextManager[None] = nullcontext()
_NO_ARGUMENTS: Mapping[str, Any] = {}


class Caller:
    """Calls one handler where its lane runs it."""

    def __init__(
        self,
        spec: HandlerSpec,
        *,
        lane: Lane,
        around: Callable[[Delivery], AnyContext] | None,
        application: object,
    ) -> None:
        self.spec = spec
        self.lane = lane
        self._around = around
        self._application = application

    def entered(self, delivery: Told) -> AbstractContextManager[None]:
        """Enter the application's ``around`` for one attempt, if there is one."""
        return _NOTHING if self._around is None else self._entered(self._around(delivery()))

    @contextmanager
    def _entered(self, around: AnyContext) -> Iterator[None]:
        failed: list[BaseException] = []
        with self.lane.entered(around):
            try:
                yield
            except BaseException as error:
                failed.append(error)
                raise
        if failed:
            # It may look at the error, but not hide it: nothing of the attempt was kept.
            raise failed[0]

    def call(self, payload: Any, delivery: Told, transaction: HandlerTransaction | None) -> None:
        """Run the handler, and see to what it left in its sessions."""
        call = self.spec.call
        arguments = self._arguments(delivery, transaction) if call.injections else _NO_ARGUMENTS
        self.lane.call(call, payload, arguments, self.spec.timeout)
        crash_point("consumer.handled")
        if transaction is not None:
            transaction.handled()

    def _arguments(
        self, delivery: Told, transaction: HandlerTransaction | None
    ) -> Mapping[str, Any]:
        def provide(injection: Injection) -> Any:
            if injection.source is Source.MESSAGE:
                return delivery().message
            if injection.source is Source.DELIVERY:
                return delivery()
            if injection.source is Source.MQ or transaction is None:
                return self._application
            return transaction.provide(injection)

        return self.spec.call.arguments(provide)
