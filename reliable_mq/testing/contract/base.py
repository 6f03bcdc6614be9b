"""Fixtures of the suite: what an adapter's author gives, and what the tests make of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

import pytest

from reliable_mq.adapter import SENT, Adapter, AdapterContext, GroupSpec, TopicSpec
from reliable_mq.message import Message
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.member import Task
from reliable_mq.testing.contract.processes import MemberProcess
from reliable_mq.testing.contract.readers import Reader

GROUP = "billing"
PUBLISH_TIMEOUT = 20.0


class BrokerControl(Protocol):
    """Power over the broker's process, for the outage tests."""

    def kill(self) -> None:
        """End it at once, as SIGKILL does. What it stored durably stays."""
        ...

    def start(self) -> object:
        """Start it for the first time, empty. The tests do not call it."""
        ...

    def restart(self) -> None:
        """Start it again at the same address with what it stored; return when it serves."""
        ...

    def pause(self) -> None:
        """Stop it as SIGSTOP does: connections stay open, nothing answers."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


class Foreign(Protocol):
    """Publishes without this library."""

    def __call__(self, topic: str, body: bytes | None, headers: list[tuple[str, bytes]], /) -> None:
        """Publish one message; *body* None: without one where the broker knows that, else empty."""
        ...


class ContextFactory(Protocol):
    """Makes the context of one more adapter on the same broker."""

    def __call__(self, *, lease: float | None = None) -> AdapterContext:
        """Return a context with an instance name of its own; *lease* in seconds."""
        ...


class Declare(Protocol):
    """Makes a topic of a name nobody used before."""

    def __call__(
        self,
        *,
        partitions: int | None = None,
        groups: Sequence[str] = (GROUP,),
        ordered: bool = False,
    ) -> str:
        """Declare the topic with its groups and return its name."""
        ...


class OpenAnother(Protocol):
    """Opens one more adapter on the same broker, as another process would."""

    def __call__(self, *, url: str = ..., lease: float | None = None) -> Adapter:
        """Return it; the fixture closes it."""
        ...


class OpenReader(Protocol):
    """Subscribes a group."""

    def __call__(
        self,
        *topics: str,
        group: str = GROUP,
        ordered: bool = False,
        prefetch: int = 500,
        adapter: Adapter = ...,
    ) -> Reader:
        """Return a reader on *adapter*, by default the one under test; the fixture closes it."""
        ...


class StartProcess(Protocol):
    """Subscribes a group in another process."""

    def __call__(
        self,
        *topics: str,
        group: str = GROUP,
        ordered: bool = False,
        prefetch: int = 500,
        ack: int = 0,
    ) -> MemberProcess:
        """Return the running member; the fixture kills it."""
        ...


def send(adapter: Adapter, messages: Sequence[Message]) -> None:
    """Publish *messages* and check that each is confirmed."""
    outcomes = adapter.publish(messages, PUBLISH_TIMEOUT)
    assert outcomes == [SENT] * len(messages)


def fresh_name(prefix: str) -> str:
    """Return a name nobody used before, valid as topic and as instance."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def require_capability(adapter: Adapter, name: str) -> None:
    """Skip the test unless the adapter declares the capability."""
    if not getattr(adapter.capabilities, name):
        pytest.skip(f"capability {name} not declared")


def skip_without_hook(name: str) -> NoReturn:
    """Skip the test because its hook was not overridden. ``ContractBase.without`` explains it."""
    pytest.skip(f"hook {name} not given")


class ContractBase:
    """What an adapter's author overrides, and the tools of the tests.

    Required: the fixture ``adapter``, an open adapter on a broker where the suite may make
    topics; make it with ``context()``, so that it sees what the suite declares. Optional hooks:
    the fixtures ``url``, ``database_url``, ``client_options``, ``broker``,
    ``bad_credentials_url`` and ``foreign``, and the attributes ``lease``, ``short_lease``,
    ``quiet``, ``notices_silence``, ``column`` and ``without``.
    """

    notices_silence: ClassVar[bool] = True
    """Whether ``receive`` returns in time while the broker is stopped and answers nothing."""

    column: ClassVar[str] = ""
    """The adapter's name in the matrix; without one the class's. Classes may share a column."""

    without: ClassVar[Mapping[str, str]] = {}
    """Hooks that cannot be given for this broker, each with the reason that the matrix shows."""

    lease: ClassVar[float] = 10.0
    """Seconds of ``AdapterContext.lease`` where nobody is meant to lose anything."""

    quiet: ClassVar[float] = 1.0
    """Seconds without a delivery after which the suite believes that no more will come."""

    short_lease: ClassVar[float] = 2.0
    """The same where a killed or stopped member is to be replaced soon."""

    # --- given by the adapter's author ---

    @pytest.fixture
    def adapter(self) -> Iterator[Adapter]:
        """Yield the adapter under test. Must be overridden."""
        raise NotImplementedError("define the fixture 'adapter' in your AdapterContract subclass")

    @pytest.fixture
    def url(self, adapter: Adapter) -> str | None:
        """Return the URL at which another process reaches the same broker."""
        found: str | None = getattr(adapter, "url", None)
        return found

    @pytest.fixture
    def database_url(self) -> str | None:
        """Return the database of the context's store, for an adapter that keeps messages in it."""
        return None

    @pytest.fixture
    def client_options(self) -> dict[str, Any]:
        """Return the client options of every adapter the suite opens; must be JSON."""
        return {}

    @pytest.fixture
    def broker(self) -> BrokerControl | None:
        """Return what can kill, restart, pause and resume the broker; private to this run."""
        return None

    @pytest.fixture
    def bad_credentials_url(self) -> str | None:
        """Return the broker's URL with a wrong password in it."""
        return None

    @pytest.fixture
    def foreign(self) -> Foreign | None:
        """Return what publishes without this library."""
        return None

    # --- made by the suite ---

    @pytest.fixture
    def topics(self) -> dict[str, TopicSpec]:
        """Return what was declared so far: every context's live view."""
        return {}

    @pytest.fixture
    def store(self, database_url: str | None) -> Iterator[Any]:
        """Yield the store that every context of this process shares, or None."""
        if database_url is None:
            yield None
            return
        from reliable_mq.testing.contract.stores import close_store, open_store

        opened = open_store(database_url)
        yield opened
        close_store(opened)

    @pytest.fixture
    def context(
        self, topics: dict[str, TopicSpec], client_options: dict[str, Any], store: Any
    ) -> ContextFactory:
        """Return the factory of contexts."""

        def make(*, lease: float | None = None) -> AdapterContext:
            return AdapterContext(
                instance=fresh_name("contract"),
                topics=topics,
                client_options=client_options,
                lease=self.lease if lease is None else lease,
                store=store,
            )

        return make

    @pytest.fixture
    def declare(self, adapter: Adapter, topics: dict[str, TopicSpec]) -> Declare:
        """Return the function that declares a fresh topic."""

        def make(
            *,
            partitions: int | None = None,
            groups: Sequence[str] = (GROUP,),
            ordered: bool = False,
        ) -> str:
            spec = TopicSpec(name=fresh_name("contract"), partitions=partitions)
            topics[spec.name] = spec
            members = [GroupSpec(topic=spec.name, group=g, ordered=ordered) for g in groups]
            adapter.declare([spec], members)
            return spec.name

        return make

    @pytest.fixture
    def resources(self, adapter: Adapter) -> Iterator[ExitStack]:
        """Yield the stack that closes what a test opened, the newest first, then the adapter."""
        with ExitStack() as stack:
            yield stack

    @pytest.fixture
    def another(
        self, url: str | None, resources: ExitStack, context: ContextFactory
    ) -> OpenAnother:
        """Return the function that opens one more adapter."""
        if url is None:
            skip_without_hook("url")

        def make(*, url: str = url, lease: float | None = None) -> Adapter:
            opened = open_adapter(url, context(lease=lease))
            resources.callback(opened.close)
            return opened

        return make

    @pytest.fixture
    def reader(self, adapter: Adapter, resources: ExitStack) -> OpenReader:
        """Return the function that subscribes."""

        def make(
            *topics: str,
            group: str = GROUP,
            ordered: bool = False,
            prefetch: int = 500,
            adapter: Adapter = adapter,
        ) -> Reader:
            subscription = adapter.subscribe(topics, group, prefetch=prefetch, ordered=ordered)
            opened = Reader(subscription, quiet=self.quiet)
            resources.callback(opened.close)
            return opened

        return make

    @pytest.fixture
    def process(
        self,
        url: str | None,
        context: ContextFactory,
        database_url: str | None,
        adapter: Adapter,
        resources: ExitStack,
        tmp_path: Path,
    ) -> StartProcess:
        """Return the function that starts a member process, with the short lease."""
        require_capability(adapter, "durable")
        if url is None:
            skip_without_hook("url")

        def start(
            *topics: str,
            group: str = GROUP,
            ordered: bool = False,
            prefetch: int = 500,
            ack: int = 0,
        ) -> MemberProcess:
            seen = context(lease=self.short_lease)
            task = Task(
                url=url,
                history=str(tmp_path / f"{seen.instance}.jsonl"),
                topics=list(topics),
                group=group,
                instance=seen.instance,
                ordered=ordered,
                prefetch=prefetch,
                ack=ack,
                lease=seen.lease,
                max_message_bytes=seen.max_message_bytes,
                database_url=database_url,
                client_options=dict(seen.client_options),
                specs=[asdict(spec) for spec in seen.topics.values()],
            )
            member = MemberProcess(task, tmp_path / f"{seen.instance}.log")
            resources.callback(member.kill)
            return member

        return start
