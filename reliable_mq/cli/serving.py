"""``run``, ``relay``, ``consume``, ``declare``: the parts of an application as processes."""

from __future__ import annotations

import gc
import logging
from typing import Annotated

import typer

from reliable_mq.app import ReliableMQ
from reliable_mq.cli.output import fail, say, warn
from reliable_mq.cli.targets import AppArgument, load, using

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step (DEBUG).")]


def run(app: AppArgument, verbose: Verbose = False) -> None:
    """Run relay and handlers until SIGTERM or SIGINT."""
    mq = _load(app, verbose)
    if not mq.handlers:
        warn(f"{app} has no handlers: only the relay runs")
    _serve(mq, relay=True, consume=True)


def relay(app: AppArgument, verbose: Verbose = False) -> None:
    """Run only the relay: send what committed transactions left in the outbox."""
    _serve(_load(app, verbose), relay=True, consume=False)


def consume(app: AppArgument, verbose: Verbose = False) -> None:
    """Run only the handlers and their retries."""
    mq = _load(app, verbose)
    if not mq.handlers:
        fail(f"{app} has no handlers: nothing would be consumed")
    _serve(mq, relay=False, consume=True)


def declare(app: AppArgument) -> None:
    """Create what is missing: tables, topics, queues, groups."""
    with using(load(app)) as mq:
        mq.declare()
    say(f"declared: the tables, the topics, and the groups of {len(mq.handlers)} handlers of {app}")


def _load(name: str, verbose: bool) -> ReliableMQ:
    mq = load(name)
    # After the import: an application that has configured its logs keeps them as they are.
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if verbose:
        logging.getLogger("reliable_mq").setLevel(logging.DEBUG)
    return mq


def _serve(mq: ReliableMQ, *, relay: bool, consume: bool) -> None:
    with using(mq):
        _freeze()
        mq.run(relay=relay, consume=consume)


def _freeze() -> None:
    """Keep what the imports have made out of all later garbage collections.

    It stays as long as the process, and to look through all of it stops every thread for tens of
    milliseconds each time.
    """
    gc.collect()
    gc.freeze()
