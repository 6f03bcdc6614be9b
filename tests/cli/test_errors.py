"""What a person did wrong, or what is out of reach: one line, no secret, no traceback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from reliable_mq.cli.output import fail
from tests.cli.conftest import Cli

CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections: bound, and nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


def complaint(cli: Cli, *arguments: str) -> str:
    """Return the one line of an error with exit code 1."""
    done = cli(*arguments)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr + done.stdout
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BROKER_URL", "carrier-pigeon://h", "no adapter for the scheme carrier-pigeon://"),
        ("BROKER_URL", f"app:{CANARY}@host:9092", "has no scheme"),
        ("BROKER_URL", f"amqp://app:{CANARY}@h/?heartbeat=0", "heartbeat=0"),
        ("BROKER_URL", f"redis://app:{CANARY}@h/?trimm=3", "unknown option 'trimm'"),
        ("BROKER_URL", "sql://host", "write just sql://"),
        ("DATABASE_URL", f"app:{CANARY}@host/app", "is not a URL"),
        ("DATABASE_URL", f"oracle://app:{CANARY}@host/app", "no store for the database 'oracle'"),
        ("DATABASE_URL", f"postgresql+pgx://app:{CANARY}@host/app", "unknown database driver"),
        ("DATABASE_URL", "sqlite://", "SQLite in memory"),
        ("GROUP", "a.b", "setting group (RELIABLE_MQ_GROUP): group 'a.b' is not valid"),
        (
            "RELAY__BATCH_SIZE",
            "many",
            "setting relay.batch_size (RELIABLE_MQ_RELAY__BATCH_SIZE): Input should be a valid int",
        ),
        ("RELAY__PUBLISH_TIMEOUT", "29", "relay.publish_timeout (29 s) must end well before"),
        ("CLIENT_OPTIONS", f"{{{CANARY}", "it must be JSON"),
        ("DATABASE_ULR", "x", "did you mean RELIABLE_MQ_DATABASE_URL?"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    cli: Cli, name: str, value: str, expected: str
) -> None:
    cli.env[f"RELIABLE_MQ_{name}"] = value
    assert expected in complaint(cli, "status")


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "mariadb"])
def test_an_unreachable_database_is_named_without_its_password(
    cli: Cli, shop: Path, scheme: str, closed_port: int
) -> None:
    cli.env["RELIABLE_MQ_DATABASE_URL"] = f"{scheme}://app:{CANARY}@127.0.0.1:{closed_port}/shop"
    for command in (("dlq", "ls"), ("declare", "shop:mq")):
        line = complaint(cli, *command)
        assert line.startswith(f"database {scheme}+")
        assert f"app:***@127.0.0.1:{closed_port}/shop: " in line
        assert "refused" in line


@pytest.mark.parametrize("scheme", ["amqp", "redis", "kafka"])
def test_an_unreachable_broker_is_named_without_its_password(
    cli: Cli, shop: Path, scheme: str, closed_port: int
) -> None:
    cli.env["RELIABLE_MQ_BROKER_URL"] = f"{scheme}://app:{CANARY}@127.0.0.1:{closed_port}"
    assert str(closed_port) in complaint(cli, "declare", "shop:mq")


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("amqp://h", "pika", "rabbitmq"),
        ("redis://h", "redis", "redis"),
        ("kafka://h", "confluent_kafka", "kafka"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    cli: Cli, url: str, package: str, extra: str
) -> None:
    missing = cli.folder / "missing"
    missing.mkdir()
    (missing / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}', name={package!r})\n"
    )
    cli.env["PYTHONPATH"] = str(missing)
    cli.env["RELIABLE_MQ_BROKER_URL"] = url
    assert f"pip install 'reliable-mq[{extra}]'" in complaint(cli, "status")


def test_a_complaint_is_one_harmless_line_whatever_its_text_holds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What passes through from clients and drivers is not all ours to word.
    with pytest.raises(typer.Exit):
        fail(f"no answer from amqp://app:{CANARY}@host/shop\n\tis it \x1b[31mup[/red] :warning:?")
    said = capsys.readouterr().err
    assert said == (
        "error: no answer from amqp://app:***@host/shop is it \\x1b[31mup[/red] :warning:?\n"
    )


def test_an_unknown_command_is_wrong_usage(cli: Cli) -> None:
    assert cli("dokter").returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("demo",),
        ("run",),
        ("relay",),
        ("consume",),
        ("declare",),
        ("status",),
        ("outbox",),
        ("outbox", "ls"),
        ("outbox", "show"),
        ("outbox", "retry"),
        ("outbox", "discard"),
        ("dlq",),
        ("dlq", "ls"),
        ("dlq", "show"),
        ("dlq", "replay"),
        ("dlq", "discard"),
        ("schema",),
        ("schema", "create"),
        ("schema", "check"),
        ("schema", "sql"),
    ],
)
def test_each_command_explains_itself(command: tuple[str, ...]) -> None:
    # In this process: a process each would take longer than it shows.
    from typer.testing import CliRunner

    from reliable_mq.cli.commands import app

    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage: " in done.output
    assert "--help" in done.output


def test_the_version_is_that_of_the_distribution(cli: Cli) -> None:
    from importlib.metadata import version

    assert cli("--version").stdout == f"reliable-mq {version('reliable-mq')}\n"
