"""Start shop, relay and accounting, kill two of them on the way, and prove the result."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import Engine, create_engine, func, select, text


class Process:
    """A child process that can be killed and started again; its output goes to a log file."""

    def __init__(self, name: str, *arguments: str, log: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._log = log
        self._child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *self._arguments], stdout=log, stderr=log
            )

    def kill_and_restart(self) -> None:
        """SIGKILL: no clean-up, no goodbye."""
        self._child.kill()
        self._child.wait()
        self._child = self._start()

    def check(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._child.poll()

    def stop(self) -> None:
        """End it politely, or not if it does not listen."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(60)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def tail(self) -> str:
        """Return the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-20:])


def main() -> int:
    """Run the example; 0 if everything agrees."""
    options = parse()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdnow-")))
        database = options.database_url or f"sqlite:///{folder / 'cdnow.db'}"
        os.environ["RELIABLE_MQ_DATABASE_URL"] = database
        os.environ["RELIABLE_MQ_BROKER_URL"] = options.broker_url
        os.environ["RELIABLE_MQ_CONSUMER__LEASE"] = "3"
        os.environ["RELIABLE_MQ_RELAY__LEASE"] = "3"
        os.environ["RELIABLE_MQ_RELAY__PUBLISH_TIMEOUT"] = "2"
        return run(options, database, folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.cdnow", description=__doc__)
    parser.add_argument("--broker-url", default="sql://", help="default: sql://, no server")
    parser.add_argument("--database-url", help="default: a temporary SQLite file")
    parser.add_argument("--rows", type=int, help="only so many of the 69,659 purchases")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds")
    return parser.parse_args()


def run(options: argparse.Namespace, database: str, folder: Path) -> int:
    """Run the processes and report."""
    # Only now: the service reads its settings from the environment when it is imported.
    from examples.cdnow.proof import prove
    from examples.cdnow.service import Base, mq

    engine = create_engine(database)
    Base.metadata.create_all(engine)
    mq.declare()
    started = time.monotonic()
    rows = ["--rows", str(options.rows)] if options.rows else []
    app = "examples.cdnow.service:mq"
    shop = Process("shop", "examples.cdnow.shop", *rows, log=folder / "shop.log")
    relay = Process("relay", "reliable_mq", "relay", app, log=folder / "relay.log")
    books = [
        Process("accounting", "reliable_mq", "consume", app, log=folder / f"accounting-{n}.log")
        for n in (1, 2)
    ]
    processes = [shop, relay, *books]
    try:
        work(options, engine, shop, relay, books, started)
    except Exception:
        for process in processes:
            print(f"--- {process.name}\n{process.tail()}", file=sys.stderr)
        raise
    finally:
        for process in processes:
            process.stop()
    proof = prove(engine, options.rows)
    status = mq.status()
    mq.close()
    engine.dispose()
    seconds = time.monotonic() - started
    if status.outbox.pending or status.outbox.held:
        proof.errors.append(f"the outbox is not empty: {status.outbox}")
    for (topic, group), state in status.groups.items():
        if state.lag or state.retries or state.dead_letters:
            proof.errors.append(f"{topic}/{group} is not at rest: {state}")
    for error in proof.errors[:10]:
        print("WRONG:", error)
    print(
        f"{proof.purchases} purchases of {proof.customers} customers, "
        f"{proof.cents // 100}.{proof.cents % 100:02d} dollars: "
        + ("the ledger DISAGREES" if proof.errors else "count, sum and order agree")
    )
    print(f"broker {options.broker_url.partition('://')[0]}, "
          f"database {database.partition(':')[0]}, {seconds:.1f} s")  # fmt: skip
    return 1 if proof.errors else 0


def work(
    options: argparse.Namespace,
    engine: Engine,
    shop: Process,
    relay: Process,
    books: list[Process],
    started: float,
) -> None:
    """Watch the ledger grow; kill a consumer at a quarter of it and the relay at half."""
    from examples.cdnow.data import read_rows

    total = sum(1 for _ in read_rows(options.rows))
    kills = [(total // 4, books[0]), (total // 2, relay)]
    shown = 0
    pause = threading.Event()
    while (booked := count_entries(engine)) < total or not at_rest(engine):
        if kills and booked >= kills[0][0]:
            _, victim = kills.pop(0)
            print(f"{booked:6d} booked: {victim.name} is killed (SIGKILL) and started again")
            victim.kill_and_restart()
        if booked - shown >= max(total // 10, 1):
            shown = booked
            print(f"{booked:6d} of {total} booked")
        if shop.check() not in (None, 0):
            raise RuntimeError("the shop failed")
        if time.monotonic() - started > options.timeout:
            raise TimeoutError(f"{booked} of {total} booked after {options.timeout:g} s")
        pause.wait(0.2)
    if kills:
        raise RuntimeError("it was over before a process could be killed: use more rows")


def count_entries(engine: Engine) -> int:
    """Return how many purchases are booked."""
    from examples.cdnow.service import Entry

    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Entry)) or 0


def at_rest(engine: Engine) -> bool:
    """Tell whether nothing waits in the outbox or for a retry, and the broker has no backlog."""
    from examples.cdnow.service import mq

    with engine.connect() as connection:
        for table in ("reliable_mq_outbox", "reliable_mq_retry"):
            if connection.scalar(text(f"SELECT count(*) FROM {table}")):  # noqa: S608 - constants
                return False
    return not any(group.lag for group in mq.status().groups.values())


if __name__ == "__main__":
    raise SystemExit(main())
