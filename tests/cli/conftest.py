"""The installed command as a process of its own, on an application of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reliable_mq import ReliableMQ, Settings

COMMAND = Path(sysconfig.get_path("scripts")) / "reliable-mq"
PATIENCE = 60.0

SHOP = """
import os
import time
from pathlib import Path

from reliable_mq import Reject, ReliableMQ, Settings

mq = ReliableMQ(Settings())
orders = mq.topic("orders", str, partitions=2)
empty = ReliableMQ(Settings())
number = 7


def create():
    return mq


@mq.handler(orders, group="billing", guarantee=os.environ.get("GUARANTEE", "effectively-once"))
def charge(order: str) -> None:
    if order == "unicorn" and not Path("mended").exists():
        raise Reject("there are no unicorns")
    if order == "slow":
        Path("started").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    with Path("charged").open("a") as file:
        file.write(order + "\\n")
"""


def until(condition: Callable[[], object], what: str) -> None:
    """Poll *condition* until it holds; fail when that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.02)


class Process:
    """The command while it runs. Everything it says goes to one file."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, env: dict[str, str]) -> None:
        self._log = folder / f"{arguments[0]}.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [COMMAND, *arguments], cwd=folder, env=env, stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.said or self._child.poll() is not None, f"{text!r} in the log")
        assert text in self.said, self.said

    def send(self, number: int) -> None:
        self._child.send_signal(number)

    def wait(self) -> int:
        return self._child.wait(PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it, and return its exit code."""
        self.send(number)
        return self.wait()

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


class Cli:
    """Calls ``reliable-mq`` in *folder*, with an environment that a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            name: value for name, value in os.environ.items() if "RELIABLE_MQ_" not in name.upper()
        }
        self._processes: list[Process] = []

    def __call__(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.execute(COMMAND, *arguments, stdin=stdin)

    def execute(
        self, *command: str | Path, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start(self, *arguments: str) -> Process:
        process = Process(arguments, self.folder, self.env)
        self._processes.append(process)
        return process

    def end(self) -> None:
        for process in self._processes:
            process.end()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command in an empty folder, configured for a database that is not there yet."""
    cli = Cli(tmp_path)
    cli.env["RELIABLE_MQ_DATABASE_URL"] = f"sqlite:///{tmp_path / 'shop.db'}"
    yield cli
    cli.end()


@pytest.fixture
def shop(cli: Cli) -> Path:
    """The folder of an application ``shop:mq`` with a handler; what it charged is in a file."""
    (cli.folder / "shop.py").write_text(SHOP)
    return cli.folder


@pytest.fixture
def mq(cli: Cli) -> Iterator[ReliableMQ]:
    """The same database, opened by the test, with the shop's topic and group declared."""
    with ReliableMQ(Settings(database_url=cli.env["RELIABLE_MQ_DATABASE_URL"])) as mq:
        mq.handler(mq.topic("orders", str, partitions=2), group="billing")(_ignore)
        mq.declare()
        yield mq


@pytest.fixture
def usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Call the command in this process, where nothing but its parameters is looked at."""
    from typer.testing import CliRunner

    from reliable_mq.cli.commands import app

    monkeypatch.chdir(tmp_path)
    yield lambda *arguments: CliRunner().invoke(app, arguments).exit_code
    assert list(tmp_path.iterdir()) == [], "it went further than its parameters"


def _ignore(order: str) -> None:
    raise AssertionError("the test process handles nothing")


def publish(mq: ReliableMQ, *payloads: object, topic: str = "orders", key: str = "ann") -> None:
    """Commit messages to the outbox."""
    with mq.transaction():
        for payload in payloads:
            mq.publish(topic, payload, key=key)
