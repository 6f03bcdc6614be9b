"""Sell every purchase of the file, book each one in another process, and prove the result."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

FEWEST = 500
"""Purchases below which it would be over before anything could be killed."""


def main() -> int:
    """Run the example; 0 if the ledger agrees with the file."""
    options = parse()
    # As on Ctrl-C: what was started is stopped, what was written is removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="cdnow-") as name:
        folder = Path(name)
        configure(options, folder)
        # Only now: the service reads its settings from the environment when it is imported.
        from examples.cdnow.director import direct

        return direct(options.rows, options.timeout, folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.cdnow", description=__doc__)
    parser.add_argument("--broker-url", default="sql://", help="default: sql://, no server")
    parser.add_argument("--database-url", help="default: a temporary SQLite file")
    parser.add_argument("--topic", default="cdnow.purchases", help="default: %(default)s")
    parser.add_argument("--rows", type=rows, help="only so many of the 69,659 purchases")
    parser.add_argument("--timeout", type=float, default=1800.0, help="default: 1800 seconds")
    return parser.parse_args()


def rows(text: str) -> int:
    """Return how many purchases to sell."""
    number = int(text)
    if number < FEWEST:
        raise argparse.ArgumentTypeError(f"at least {FEWEST}")
    return number


def configure(options: argparse.Namespace, folder: Path) -> None:
    """Set what this process and those it starts read when they import the service."""
    database = options.database_url or f"sqlite:///{folder / 'cdnow.db'}"
    os.environ["RELIABLE_MQ_BROKER_URL"] = options.broker_url
    os.environ["RELIABLE_MQ_DATABASE_URL"] = database
    os.environ["CDNOW_TOPIC"] = options.topic
    # So that others soon take over what a killed process held. The default is half a minute,
    # which is kinder to a process that is only slow.
    os.environ.setdefault("RELIABLE_MQ_CONSUMER__LEASE", "3")
    os.environ.setdefault("RELIABLE_MQ_RELAY__LEASE", "3")
    os.environ.setdefault("RELIABLE_MQ_RELAY__PUBLISH_TIMEOUT", "2")


if __name__ == "__main__":
    raise SystemExit(main())
