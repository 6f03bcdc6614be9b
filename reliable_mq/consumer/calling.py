"""Calling a handler: its arguments, and the application's ``around`` about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from reliable_mq.consumer.lanes import AnyContext, Lane
from reliable_mq.consumer.transaction import HandlerTransaction
from reliable_mq.crashpoints import crash_point
from reliable_mq.handlers import HandlerSpec, Injection, Source
from reliable_mq.message import Delivery


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

    @contextmanager
    def entered(self, delivery: Delivery) -> Iterator[None]:
        """Enter the application's ``around`` for one attempt, if there is one."""
        if self._around is None:
            yield
            return
        failed: list[BaseException] = []
        with self.lane.entered(self._around(delivery)):
            try:
                yield
            except BaseException as error:
                failed.append(error)
                raise
        if failed:
            # It may look at the error, but not hide it: nothing of the attempt was kept.
            raise failed[0]

    def call(
        self, payload: Any, delivery: Delivery, transaction: HandlerTransaction | None
    ) -> None:
        """Run the handler and flush what it left in its sessions."""

        def provide(injection: Injection) -> Any:
            if injection.source is Source.MESSAGE:
                return delivery.message
            if injection.source is Source.DELIVERY:
                return delivery
            if injection.source is Source.MQ or transaction is None:
                return self._application
            return transaction.provide(injection)

        call = self.spec.call
        arguments = call.arguments(provide) if call.injections else {}
        self.lane.call(call, payload, arguments, self.spec.timeout)
        crash_point("consumer.handled")
        if transaction is not None:
            transaction.flush()
            transaction.guard.check()
