"""Opening, declaring, wrong credentials, closing."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import unquote, urlsplit

import pytest

from reliable_mq.adapter import (
    Adapter,
    Finding,
    GroupSpec,
    TopicSpec,
    Unknown,
    Unroutable,
)
from reliable_mq.errors import ConfigurationError, ReliableMQError
from reliable_mq.testing.contract.base import (
    GROUP,
    ContractBase,
    Declare,
    OpenAnother,
    OpenReader,
    fresh_name,
    send,
    skip_without_hook,
)
from reliable_mq.testing.contract.messages import message, numbered, numbers_of
from reliable_mq.testing.contract.waiting import wait_for

SOON = 20.0
"""Seconds within which wrong credentials must be an error."""


class LifecycleContract(ContractBase):
    """An adapter from its opening to its close."""

    def test_the_adapter_has_the_members_of_the_protocol(self, adapter: Adapter) -> None:
        assert isinstance(adapter, Adapter)
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", adapter.name)

    def test_inspect_and_redelivery_bound_answer(self, adapter: Adapter, declare: Declare) -> None:
        topic = declare()
        assert all(isinstance(finding, Finding) for finding in adapter.inspect())
        bound = adapter.redelivery_bound([topic])
        assert bound is None or bound > timedelta(0)

    def test_declare_of_what_exists_changes_nothing(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=4)
        batch = numbered(topic, range(10))
        send(adapter, batch)
        consumer = reader(topic)
        taken = consumer.take(10)
        consumer.ack(taken[:5])
        consumer.close()
        for partitions in (4, None):
            adapter.declare(
                [TopicSpec(name=topic, partitions=partitions)],
                [GroupSpec(topic=topic, group=GROUP)],
            )
        assert numbers_of(reader(topic).take_only(5)) == [5, 6, 7, 8, 9]

    def test_declare_with_another_number_of_partitions_names_both_numbers(
        self, adapter: Adapter, declare: Declare
    ) -> None:
        topic = declare(partitions=8)
        for asked in (4, 16):
            with pytest.raises(ConfigurationError) as caught:
                adapter.declare(
                    [TopicSpec(name=topic, partitions=asked)],
                    [GroupSpec(topic=topic, group=GROUP)],
                )
            assert {str(asked), "8"} <= set(re.findall(r"\d+", str(caught.value)))
            assert topic in str(caught.value)

    def test_two_processes_may_declare_the_same_at_once(
        self, adapter: Adapter, another: OpenAnother, topics: dict[str, TopicSpec]
    ) -> None:
        spec = TopicSpec(name=fresh_name("contract"), partitions=4)
        topics[spec.name] = spec
        groups = [GroupSpec(topic=spec.name, group=group) for group in ("billing", "audit")]
        adapters = [adapter, another(), another()]
        _at_once([lambda one=one: one.declare([spec], groups) for one in adapters])  # type: ignore[misc]
        send(adapter, numbered(spec.name, range(10)))
        wait_for(
            lambda: [adapter.lag(spec.name, group) for group in ("billing", "audit")] == [10, 10],
            "a lag of 10 in both groups",
        )

    def test_wrong_credentials_are_an_error_soon_that_hides_the_password(
        self, declare: Declare, another: OpenAnother, bad_credentials_url: str | None
    ) -> None:
        if bad_credentials_url is None:
            skip_without_hook("bad_credentials_url")
        topic = declare()
        secret = unquote(urlsplit(bad_credentials_url).password or "")
        adapter = another(url=bad_credentials_url)
        begin = time.monotonic()
        with pytest.raises(ConfigurationError) as caught:
            adapter.declare([TopicSpec(name=topic)], [GroupSpec(topic=topic, group=GROUP)])
        assert secret not in str(caught.value)
        consumer = adapter.subscribe([topic], GROUP, prefetch=10, ordered=False)
        with pytest.raises(ReliableMQError) as refused:
            wait_for(lambda: consumer.receive(10, 1.0).deliveries, "an error", seconds=SOON)
        assert secret not in str(refused.value)
        consumer.close()
        (outcome,) = adapter.publish([message(topic)], 10.0)
        assert isinstance(outcome, Unknown | Unroutable)
        assert secret not in outcome.cause
        assert time.monotonic() - begin < 3 * SOON

    def test_close_is_idempotent_and_leaves_no_thread_behind(
        self, declare: Declare, another: OpenAnother
    ) -> None:
        topic = declare()
        before = set(threading.enumerate())
        adapter = another()
        send(adapter, numbered(topic, range(5)))
        closed = adapter.subscribe([topic], GROUP, prefetch=10, ordered=False)
        wait_for(lambda: closed.receive(10, 1.0).deliveries, "a delivery")
        closed.close()
        closed.close()
        forgotten = adapter.subscribe([topic], GROUP, prefetch=10, ordered=False)
        wait_for(lambda: forgotten.receive(10, 1.0).deliveries, "a delivery")
        adapter.close()
        adapter.close()
        forgotten.close()
        wait_for(
            lambda: not {one for one in threading.enumerate() if one not in before},
            "the end of the adapter's threads",
        )

    def test_opening_and_closing_again_and_again_leaves_no_socket_behind(
        self, declare: Declare, another: OpenAnother
    ) -> None:
        topic = declare()

        def open_and_close() -> None:
            adapter = another()
            send(adapter, numbered(topic, range(2)))
            consumer = adapter.subscribe([topic], GROUP, prefetch=10, ordered=False)
            wait_for(lambda: consumer.receive(10, 1.0).deliveries, "a delivery")
            consumer.close()
            adapter.close()

        open_and_close()
        before, rounds = _open_sockets(), 5
        for _ in range(rounds):
            open_and_close()
        # What does not close its socket leaves one each time. One or two more are no leak: where a
        # thread of the first adapter took the idle connection of the store's pool for its own, the
        # pool had none when they were counted, and has one again since.
        wait_for(
            lambda: _open_sockets() < before + 3,
            f"fewer than 3 open sockets more than the {before} after the first",
        )

    def test_an_adapter_that_was_never_used_closes(self, another: OpenAnother) -> None:
        adapter = another()
        adapter.close()
        adapter.close()


def _open_sockets() -> int:
    """Return how many sockets this process has."""
    found = 0
    for descriptor in os.listdir("/dev/fd"):
        # The listing's own descriptor is gone by now.
        with contextlib.suppress(OSError):
            found += stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
    return found


def _at_once(calls: list[Callable[[], None]]) -> None:
    """Run *calls* on a thread each, from one starting signal; raise the first of their errors."""
    barrier, errors = threading.Barrier(len(calls)), list[BaseException]()

    def run(call: Callable[[], None]) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
