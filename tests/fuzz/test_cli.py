"""Arguments that nobody meant: an exit code and a line of what is wrong, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from reliable_mq import Reject, ReliableMQ, Settings
from reliable_mq.cli.commands import app
from reliable_mq.settings import PREFIX
from tests.fuzz.mutation import Mutator
from tests.fuzz.running import fuzz

_SERVING = (("run",), ("relay",), ("consume",), ("declare",))
_LOOKING = (
    ("status",),
    ("doctor",),
    ("schema", "check"),
    ("schema", "sql"),
    ("schema", "create"),
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
)
_WORDS = (
    "1",
    "-1",
    "0",
    "99999999999999999999",
    "9" * 5000,
    "1e3",
    "\u0661",
    "",
    "-",
    "--",
    "--all",
    "--yes",
    "--json",
    "--held",
    "--limit",
    "--limit=0",
    "--limit=10000000000",
    "--after",
    "--after=-9223372036854775809",
    "--topic",
    "--group=billing",
    "--app",
    "--app=nowhere:mq",
    "--version",
    "--nothing",
    "orders",
    "a' OR 1=1 --",
    "nowhere:mq",
    ".nowhere:mq",
    "..:x",
    "json:nothing",
    "json:decoder",
    "json.:x",
    ":",
    "n" * 300 + ":mq",
    "\u202e\x1b[31m",
)
"""None of them names an application: a command that serves one would not come back."""


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The settings in the environment, and a database with one dead letter and one message."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", url)
    monkeypatch.chdir(tmp_path)
    with ReliableMQ(Settings(database_url=url)) as mq:

        @mq.handler("orders", group="billing")
        def refuse(body: bytes, session: Session) -> None:
            raise Reject("\x1b[31mno\n")

        mq.declare()
        _publish(mq)
        assert mq.run_until_idle(60).dead_lettered == 1
        _publish(mq)
    return url


def _publish(mq: ReliableMQ) -> None:
    with mq.transaction():
        mq.publish("orders", b"\x00\xff\x1b[31m", key="k", headers={"h": b"\xff"})


def _check(result: Result) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    if result.exit_code == 1:
        # The doctor counts its findings on standard output.
        assert "error: " in result.stderr + result.stdout
    if result.exit_code == 2:
        # `Usage:`, and what is wrong with it in a box; without arguments it is the help.
        assert "rror" in result.stderr or "Usage" in result.output


def _arguments(mutator: Mutator) -> tuple[str, ...]:
    if mutator.chance(4):
        word = mutator.pick(_WORDS)
        return (
            *mutator.pick(_SERVING),
            mutator.argument_of((word,)) if mutator.chance(2) else word,
        )
    if mutator.chance(12):
        return tuple(_garbage(mutator)) or ("demo", "--nothing")
    return (*mutator.pick(_LOOKING), *_garbage(mutator))


def _garbage(mutator: Mutator) -> list[str]:
    words = [mutator.pick(_WORDS) for _ in range(mutator.below(4))]
    return [mutator.argument_of((word,)) if mutator.chance(3) else word for word in words]


def test_garbage_as_arguments_of_any_command_is_an_exit_code_and_no_traceback() -> None:
    runner = CliRunner()

    def check(arguments: tuple[str, ...]) -> None:
        _check(runner.invoke(app, arguments))

    # Each opens and closes an application on a real database.
    fuzz("cli", _arguments, check, share=100)


@pytest.mark.parametrize(
    "arguments",
    [
        ["dlq", "show", b"\xff\xfe"],
        ["run", b"\xff:mq"],
        ["outbox", "ls", "--topic", b"\xed\xa0\x80"],
        ["status", "--app", b".nowhere:\xff"],
    ],
)
def test_bytes_that_are_no_text_are_wrong_usage_of_a_real_process(
    arguments: list[str | bytes],
) -> None:
    command = Path(sysconfig.get_path("scripts")) / "reliable-mq"
    done = subprocess.run(
        [command, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1, 2)
    assert b"Traceback" not in done.stderr + done.stdout
