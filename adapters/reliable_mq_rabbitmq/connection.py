"""One connection to the broker on an I/O thread of its own, and the link that renews it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import pika
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowAborted

from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq_rabbitmq import errors, quiet
from reliable_mq_rabbitmq.client import Client
from reliable_mq_rabbitmq.options import Options

_CLOSE_TIMEOUT = 2.0


class Connection:
    """A connection that opens once and ends once; its thread serves the heartbeats meanwhile.

    Callers on other threads hand functions to the I/O thread. A function that raises ends the
    connection: better an outage that everybody sees than a caller who waits for ever.
    """

    def __init__(self, options: Options, name: str) -> None:
        self._name = name
        self._hosts = [f"{host}:{port}" for host, port in options.hosts]
        self._untried = [options.parameters(host, port, name) for host, port in options.hosts]
        random.shuffle(self._untried)
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._workflow: Any = None
        self._failures: list[BaseException] = []
        self._replies: set[Future[Any]] = set()
        self._cause: BaseException | None = None
        self._ended = False
        self.blocked: str | None = None
        """Why the broker takes no publishes now (an alarm), else None. Set by the I/O thread."""
        self._client: Client | None = None

    # --- for any thread ---

    def start(self) -> None:
        """Begin to connect, trying the hosts in random order."""
        self._thread.start()

    def wait_until_open(self, timeout: float) -> None:
        """Return when a host accepted.

        Raises ``TransportError`` where none did, or none within *timeout* seconds (the attempts
        go on: each host has its own time-out), and ``ConfigurationError`` where the broker
        refuses user, virtual host or certificate.
        """
        if not self._settled.wait(max(0.0, timeout)):
            raise TransportError(f"RabbitMQ at {', '.join(self._hosts)} has not answered yet")
        if self._client is None:
            raise self.error()

    @property
    def settled(self) -> bool:
        """Tell whether the attempts to connect are over, well or badly."""
        return self._settled.is_set()

    @property
    def ended(self) -> bool:
        """Tell whether nothing can be done on this connection any more."""
        return self._ended

    def error(self) -> ReliableMQError:
        """Return why the connection ended."""
        if self._client is None:
            return errors.connection_failed(self._failures, ", ".join(self._hosts))
        return TransportError(f"the connection to RabbitMQ ended: {errors.describe(self._cause)}")

    def submit(self, function: Callable[[], None]) -> bool:
        """Have the I/O thread call *function*; False where the connection has ended."""
        with self._lock:
            return self._submit(function)

    def _submit(self, function: Callable[[], None]) -> bool:
        if self._ended:
            return False
        self._loop.add_callback_threadsafe(lambda: self.guard(function))
        return True

    def request(self, start: Callable[[Future[Any]], None]) -> Future[Any]:
        """Have the I/O thread start something that will set the reply.

        The reply fails with ``TransportError`` where the connection ends first, or has ended.
        """
        reply: Future[Any] = Future()
        with self._lock:
            submitted = self._submit(lambda: _start(start, reply))
            if submitted:
                self._replies.add(reply)
        if submitted:
            reply.add_done_callback(self._replies.discard)
        else:
            reply.set_exception(self.error())
        return reply

    def ask(self, start: Callable[[Future[Any]], None], timeout: float) -> Any:
        """Return the reply to a :meth:`request`, or raise its error.

        A broker that does not reply within *timeout* seconds loses the connection: whatever
        was asked could otherwise still happen, after the caller has turned to something else.
        """
        try:
            return self.request(start).result(timeout)
        except FutureTimeout:
            self.cut(f"no reply within {timeout:g} s")
            raise TransportError(f"RabbitMQ did not reply within {timeout:g} s") from None

    def cut(self, why: str) -> None:
        """Drop the TCP connection; what waits to be written is not sent any more."""
        self.submit(lambda: self._cut(TransportError(why)))

    def close(self) -> None:
        """End the connection and its thread, within a few seconds. Idempotent.

        No ordered consumer may be alive on it: pika cancels consumers, which breaks their order.
        """
        self.submit(self._close)
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            self.cut("the broker did not answer the close")
            self._thread.join(_CLOSE_TIMEOUT)

    # --- for the I/O thread ---

    def opened(self) -> Client:
        """Return pika's connection, which is open or was."""
        if self._client is None:
            raise TransportError("the connection to RabbitMQ is not open")
        return self._client

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Call *function* after *delay* seconds, unless the connection ends before."""
        self._loop.call_later(delay, lambda: self.guard(function))

    def guard(self, function: Callable[[], None]) -> None:
        """Call *function*; an error ends the connection with that error as the cause."""
        try:
            function()
        except Exception as error:  # noqa: BLE001 - it becomes the end of the connection
            self._cut(error)

    def _run(self) -> None:
        quiet.demote_records_of_this_thread()
        try:
            self._try_next_host()
            self._loop.start()
        except Exception as error:  # noqa: BLE001 - it becomes the end of the connection
            self._cause = error
        finally:
            self._finish()

    def _try_next_host(self) -> None:
        if not self._untried:
            self._loop.stop()
            return
        # One by one: pika's own way through several hosts ends at the first unknown name.
        self._workflow = Client.create_connection(
            [self._untried.pop()], on_done=self._on_tried, custom_ioloop=self._loop
        )

    def _on_tried(self, result: Client | BaseException) -> None:
        self._workflow = None
        if isinstance(result, BaseException):
            if not isinstance(result, AMQPConnectionWorkflowAborted):
                self._failures.append(result)
            self._try_next_host()
            return
        self._client = result
        result.add_on_close_callback(self._on_closed)
        result.add_on_connection_blocked_callback(self._on_blocked)
        result.add_on_connection_unblocked_callback(self._on_unblocked)
        self._on_open()
        self._settled.set()

    def _on_closed(self, _: Client, cause: BaseException) -> None:
        self._cause = cause
        self._loop.stop()

    def _on_blocked(self, _: Client, frame: Any) -> None:
        self.blocked = f"RabbitMQ takes no messages for now: {frame.method.reason}"
        self._on_blocked_changed()

    def _on_unblocked(self, _: Client, __: Any) -> None:
        self.blocked = None
        self._on_blocked_changed()

    def _cut(self, cause: Exception) -> None:
        self._untried.clear()
        if self._client is not None:
            self._client.cut(cause)
        elif self._workflow is not None:
            workflow, self._workflow = self._workflow, None
            self._failures.append(cause)
            workflow.abort()

    def _close(self) -> None:
        if self._client is None:
            self._cut(TransportError("closed while connecting"))
        elif self._client.is_open:
            self._client.close()

    def _finish(self) -> None:
        with self._lock:
            self._ended = True
            replies = self._replies.copy()
        self._loop.close()
        self._settled.set()
        error = self.error()
        for reply in replies:
            if not reply.done():
                reply.set_exception(error)
        self._on_end()
        quiet.forget_this_thread()

    # --- for subclasses, on the I/O thread ---

    def _on_open(self) -> None:
        """Begin the connection's work; it is open now."""

    def _on_blocked_changed(self) -> None:
        """React to a change of ``blocked``."""

    def _on_end(self) -> None:
        """React to the end of the connection; the thread's last act."""


C = TypeVar("C", bound=Connection)


class Link(Generic[C]):
    """The way to the broker for one purpose: one connection at a time, renewed when it ended.

    A forked process makes one of its own.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._closed = False
        self._begin_anew()
        _links.add(self)

    def _begin_anew(self) -> None:
        """Forget the connection, in a forked child: its thread is in the parent, with its locks."""
        self._connecting = threading.Lock()
        self._lock = threading.Lock()
        self._connection: C | None = None

    def connection(self, timeout: float) -> C:
        """Return the open connection, made within *timeout* seconds if there is none.

        Raises as :meth:`Connection.wait_until_open` does, and ``TransportError`` after
        :meth:`close`.
        """
        connection = self.live()
        if connection is not None and connection.settled:
            connection.wait_until_open(0)
            return connection
        return self._connect(timeout)

    def _connect(self, timeout: float) -> C:
        deadline = time.monotonic() + timeout
        if not self._connecting.acquire(timeout=max(0.0, timeout)):
            raise TransportError("RabbitMQ: another thread is still connecting")
        try:
            connection = self.live() or self._begin()
            connection.wait_until_open(deadline - time.monotonic())
            return connection
        finally:
            self._connecting.release()

    def live(self) -> C | None:
        """Return the connection that is open or about to be, if there is one."""
        connection = self._connection
        return None if connection is None or connection.ended else connection

    def _begin(self) -> C:
        with self._lock:
            if self._closed:
                raise TransportError("this adapter is closed")
            self._connection = connection = self._make()
            connection.start()
            return connection

    def close(self) -> None:
        """Close the connection for good, also one that is still connecting. Idempotent."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


_links: WeakSet[Link[Any]] = WeakSet()


def _after_fork() -> None:
    for link in list(_links):
        link._begin_anew()


os.register_at_fork(after_in_child=_after_fork)


def _start(start: Callable[[Future[Any]], None], reply: Future[Any]) -> None:
    try:
        start(reply)
    except (pika.exceptions.AMQPError, ValueError) as error:
        if not reply.done():
            reply.set_exception(TransportError(f"RabbitMQ: {errors.describe(error)}"))
