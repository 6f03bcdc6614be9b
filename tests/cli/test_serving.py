"""``run``, ``relay``, ``consume``, ``declare``: processes, their signals, their exit codes."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from reliable_mq import ReliableMQ
from tests.cli.conftest import PATIENCE, Cli, publish, until


def charged(folder: Path) -> list[str]:
    file = folder / "charged"
    return file.read_text().split() if file.exists() else []


def lag(mq: ReliableMQ) -> int | None:
    return mq.status().groups["orders", "billing"].lag


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_sends_and_handles_and_ends_with_0_on_a_signal(
    cli: Cli, shop: Path, mq: ReliableMQ, number: int
) -> None:
    publish(mq, "book")
    process = cli.start("run", "shop:mq")
    until(lambda: charged(shop) == ["book"], "charged")
    assert process.stop(number) == 0
    assert ": orders/billing, effectively-once, concurrency 1" in process.said
    assert "reliable-mq stopped" in process.said
    assert "Traceback" not in process.said


def test_a_handler_that_runs_when_the_signal_comes_is_finished(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    publish(mq, "slow")
    process = cli.start("run", "shop:mq")
    until((shop / "started").exists, "started")
    process.send(signal.SIGTERM)
    process.wait_for("a second signal ends the process at once")
    (shop / "go").touch()
    assert process.wait() == 0
    assert charged(shop) == ["slow"]
    assert lag(mq) == 0
    inbox = mq.store.tables.inbox
    with mq.transaction() as session:
        done = session.scalar(select(func.count()).where(inbox.c.done_at.is_not(None)))
    assert done == 1


def test_a_handler_that_does_not_end_is_left_behind_after_the_shutdown_timeout(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    cli.env["RELIABLE_MQ_CONSUMER__SHUTDOWN_TIMEOUT"] = "0.5"
    # Effectively-once it would keep SQLite's only write lock, and the farewells of the other
    # parts would have to wait for that as well.
    cli.env["GUARANTEE"] = "at-least-once"
    publish(mq, "slow")
    process = cli.start("run", "shop:mq")
    until((shop / "started").exists, "started")
    assert process.stop() == 0
    assert "1 deliveries unfinished" in process.said
    assert charged(shop) == []
    assert lag(mq) == 1


def test_a_second_signal_ends_the_process_at_once_and_loses_nothing(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    publish(mq, "slow")
    process = cli.start("run", "shop:mq")
    until((shop / "started").exists, "started")
    process.send(signal.SIGTERM)
    process.wait_for("a second signal ends the process at once")
    assert process.stop() == -signal.SIGTERM
    assert charged(shop) == []
    assert lag(mq) == 1


def test_a_process_waits_for_a_database_that_is_not_there_yet_and_can_be_stopped(
    cli: Cli, shop: Path
) -> None:
    cli.env["RELIABLE_MQ_DATABASE_URL"] = "postgresql://app:canary-7f3a@127.0.0.1:1/shop"
    process = cli.start("run", "shop:mq")
    process.wait_for("relay and handlers wait for their start")
    assert process.stop() == 0
    assert "app:***@127.0.0.1:1/shop" in process.said
    assert "canary-7f3a" not in process.said
    assert "Traceback" not in process.said


def test_a_signal_is_obeyed_while_the_start_waits_for_an_answer(cli: Cli, shop: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        database.settimeout(PATIENCE)
        port = database.getsockname()[1]
        cli.env["RELIABLE_MQ_DATABASE_URL"] = f"postgresql://app@127.0.0.1:{port}/shop"
        process = cli.start("run", "shop:mq")
        connection, _ = database.accept()
        with connection:
            assert process.stop() == 0
    assert "reliable-mq stopped" in process.said
    assert "Traceback" not in process.said


def test_relay_sends_and_handles_nothing(cli: Cli, shop: Path, mq: ReliableMQ) -> None:
    publish(mq, "book")
    process = cli.start("relay", "shop:mq")
    until(lambda: mq.status().outbox.pending == 0, "sent")
    assert process.stop() == 0
    assert lag(mq) == 1
    assert charged(shop) == []


def test_consume_handles_and_sends_nothing(cli: Cli, shop: Path, mq: ReliableMQ) -> None:
    mq.publish_direct("orders", "sent before")
    publish(mq, "not sent yet")
    process = cli.start("consume", "shop:mq")
    until(lambda: lag(mq) == 0, "handled")
    assert process.stop() == 0
    assert charged(shop) == ["sent", "before"]
    assert mq.status().outbox.pending == 1


def test_the_attribute_may_be_a_function_that_returns_the_application(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    publish(mq, "book")
    process = cli.start("run", "shop:create")
    until(lambda: charged(shop) == ["book"], "charged")
    assert process.stop() == 0


COLLECTED = """
import gc
from pathlib import Path

from shop import mq

@mq.handler("frozen", group="audit")
def note(payload: object) -> None:
    found = any(type(each).__name__ == "ReliableMQ" for each in gc.get_objects())
    Path("charged").write_text(f"{gc.get_freeze_count() > 10_000} {found}")
"""


def test_what_the_imports_made_is_left_out_of_garbage_collections(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    (shop / "audit.py").write_text(COLLECTED)
    process = cli.start("run", "audit:mq")
    publish(mq, "book", topic="frozen")
    until(lambda: charged(shop) == ["True", "False"], "collected")
    assert process.stop() == 0


def test_consume_without_handlers_is_an_error(cli: Cli, shop: Path) -> None:
    done = cli("consume", "shop:empty")
    assert done.returncode == 1
    assert done.stderr == "error: shop:empty has no handlers: nothing would be consumed\n"


def test_run_without_handlers_warns_and_relays(cli: Cli, shop: Path, mq: ReliableMQ) -> None:
    publish(mq, "book")
    process = cli.start("run", "shop:empty")
    until(lambda: mq.status().outbox.pending == 0, "sent")
    assert process.stop() == 0
    assert "warning: shop:empty has no handlers: only the relay runs\n" in process.said


def test_declare_creates_tables_topics_and_groups(cli: Cli, shop: Path) -> None:
    done = cli("declare", "shop:mq")
    assert done.returncode == 0, done.stderr
    assert "1 handlers of shop:mq" in done.stdout
    status = cli("status")
    assert status.returncode == 0
    assert "orders" in status.stdout
    assert "billing" in status.stdout


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("shop", "'shop' is not of the form module:attr"),
        (":mq", "':mq' is not of the form module:attr"),
        ("shop:", "'shop:' is not of the form module:attr"),
        ("nowhere:mq", "there is no module 'nowhere'"),
        ("shop:nothing", "shop has no 'nothing'"),
        ("shop:number", "shop:number is of type int, not a ReliableMQ"),
    ],
)
def test_a_target_that_is_no_application_is_wrong_usage(
    cli: Cli, shop: Path, target: str, complaint: str
) -> None:
    # Wide: the box around a usage error breaks its line otherwise.
    cli.env["COLUMNS"] = "300"
    done = cli("run", target)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "relay", "consume", "declare"])
def test_a_missing_target_is_wrong_usage(usage: Callable[..., int], command: str) -> None:
    assert usage(command) == 2


def test_an_error_in_the_application_itself_keeps_its_traceback(cli: Cli) -> None:
    (cli.folder / "broken.py").write_text("import a_dependency_that_is_missing\n")
    done = cli("run", "broken:mq")
    assert done.returncode == 1
    assert 'broken.py", line 1' in done.stderr
    assert "a_dependency_that_is_missing" in done.stderr


def test_the_module_is_the_command(cli: Cli, shop: Path) -> None:
    done = cli.execute(sys.executable, "-m", "reliable_mq", "declare", "shop:mq")
    assert done.returncode == 0, done.stderr
    assert cli.execute(sys.executable, "-m", "reliable_mq", "run").returncode == 2
