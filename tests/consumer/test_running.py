"""How the parts start and stop around an application's own life."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from reliable_mq import ConfigurationError, ReliableMQ, Settings, TransportError
from reliable_mq.running import Signals
from reliable_mq.store import Store
from reliable_mq.wakeup import Listener, channel_of


def application(url: str) -> ReliableMQ:
    return ReliableMQ(Settings(broker_url="sql://", database_url=url))


def test_run_gives_the_signals_back_to_the_application(tmp_path: Path) -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError("the signal was meant for run()")

    def stop_when_running() -> None:
        while signal.getsignal(signal.SIGTERM) is mine:
            pause.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    pause = threading.Event()
    before = signal.signal(signal.SIGTERM, mine)
    try:
        stopper = threading.Thread(target=stop_when_running)
        stopper.start()
        with application(f"sqlite:///{tmp_path}/a.db") as mq:
            mq.run()
        stopper.join()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


class GivenUp:
    """A start that hangs until it is told to fail; a signal has ended its ``run()`` before."""

    def __init__(self, mq: ReliableMQ, error: Exception) -> None:
        begun, self._answered = threading.Event(), threading.Event()
        before = set(threading.enumerate())

        class Came(Signals):
            def wait(self, unless: Callable[[], bool] = lambda: False) -> bool:
                assert begun.wait(60)
                return True

        def hang() -> None:
            begun.set()
            assert self._answered.wait(60)
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mq, "_ensure_declared", hang)
            mq.running().until(Came())
        # The start of an earlier run() that a signal ended may still go on.
        new = set(threading.enumerate()) - before
        (self._starting,) = [one for one in new if one.name == "reliable-mq-run"]

    def fail(self) -> None:
        """Let it fail now."""
        self._answered.set()
        self._starting.join(60)


def test_a_start_that_was_given_up_does_not_end_the_next_one_when_it_fails(tmp_path: Path) -> None:
    with application(f"sqlite:///{tmp_path}/a.db") as mq:
        mq.declare()
        start = GivenUp(mq, ConfigurationError("much later"))
        with mq.running():
            start.fail()
            assert mq.status().parts["relay"] != "off"


def test_an_error_of_the_start_is_raised_though_a_signal_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Both(Signals):
        def wait(self, unless: Callable[[], bool] = lambda: False) -> bool:
            while not unless():
                pause.wait(0.01)
            return True

    def refuse() -> None:
        raise ConfigurationError("the broker has another number of partitions")

    pause = threading.Event()
    with application(f"sqlite:///{tmp_path}/a.db") as mq:
        mq.declare()
        monkeypatch.setattr(mq, "_ensure_declared", refuse)
        with pytest.raises(ConfigurationError, match="another number"):
            mq.running().until(Both())


def test_a_start_that_was_given_up_is_silent_about_a_broker_that_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with application(f"sqlite:///{tmp_path}/a.db") as mq:
        mq.declare()
        GivenUp(mq, TransportError("away")).fail()
    assert "wait for their start" not in caplog.text
    assert "reliable-mq-start" not in {one.name for one in threading.enumerate()}


def test_a_failing_start_ends_the_wait_for_a_signal_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait looks five times a second by itself, which every wrong setting would cost."""
    looks: list[bool] = []

    class Watched(Signals):
        def look(self) -> None:
            looks.append(True)
            super().look()

    def refuse() -> None:
        raise ConfigurationError("wrong")

    with application(f"sqlite:///{tmp_path}/a.db") as mq:
        mq.declare()
        monkeypatch.setattr(mq, "_ensure_declared", refuse)
        with pytest.raises(ConfigurationError):
            mq.running().until(Watched())
    assert looks == [True]


def test_run_refuses_any_thread_but_the_main_one(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            mq.run()
        except RuntimeError as error:
            errors.append(error)

    with application(f"sqlite:///{tmp_path}/a.db") as mq:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
    assert "main thread" in str(errors[0])


def test_a_commit_that_published_hints_to_the_relays_of_other_processes(
    postgresql_url: str,
) -> None:
    woken = threading.Event()
    with application(postgresql_url) as mq:
        mq.declare()
        other = Store(database_url=postgresql_url)
        channel = channel_of(other.tables.outbox)
        listener = Listener(other, channel, lambda hint: woken.set())
        listener.start()
        try:
            pause = threading.Event()
            for _ in range(100):
                if woken.is_set():
                    break
                with mq.transaction():
                    mq.publish("topic", 1)
                pause.wait(0.05)
            assert woken.wait(10)
        finally:
            listener.close()
            other.dispose()


@pytest.mark.parametrize("times", [2])
def test_a_closed_application_may_be_used_again(tmp_path: Path, times: int) -> None:
    mq = application(f"sqlite:///{tmp_path}/a.db")
    for _ in range(times):
        with mq, mq.transaction() as session:
            session.execute(text("SELECT 1"))


def test_closing_an_application_that_runs_stops_it_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mq = application(f"sqlite:///{tmp_path}/a.db")
    handled = threading.Event()

    @mq.handler("orders", group="billing")
    def handle(order: dict[str, int]) -> None:
        handled.set()

    with mq.running() as service:
        with mq.transaction():
            mq.publish("orders", {"id": 1})
        assert handled.wait(60)
        mq.close()
        assert service.parts() == {"relay": "off", "consumer": "off", "retries": "off"}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_connections_of_async_handlers_that_do_not_close_do_not_keep_it_from_running_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: Store) -> None:
        raise OSError("a broken socket")

    mq = application(f"sqlite:///{tmp_path}/a.db")

    @mq.handler("orders", group="billing")
    async def handle(order: dict[str, int]) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(Store, "adispose", fail)
        with mq.running():
            pass
    assert "did not close: OSError: a broken socket" in caplog.text
    with mq.running() as service:
        assert service.parts()["consumer"] == "running"
    mq.close()
