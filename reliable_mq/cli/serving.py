"""``run``, ``relay``, ``consume``, ``declare``: the parts of an application as processes."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from reliable_mq.app import ReliableMQ
from reliable_mq.cli.output import errors, fail, say
from reliable_mq.cli.targets import AppArgument, load

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step (DEBUG).")]


def _log(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if verbose:
        logging.getLogger("reliable_mq").setLevel(logging.DEBUG)


def run(app: AppArgument, verbose: Verbose = False) -> None:
    """Run relay and handlers until SIGTERM or SIGINT."""
    _log(verbose)
    mq = load(app)
    if not mq.handlers:
        errors.print(f"warning: {app} has no handlers, only the relay runs")
    _serve(mq, relay=True, consume=True)


def relay(app: AppArgument, verbose: Verbose = False) -> None:
    """Run only the relay: send what committed transactions left in the outbox."""
    _log(verbose)
    _serve(load(app), relay=True, consume=False)


def consume(app: AppArgument, verbose: Verbose = False) -> None:
    """Run only the handlers and their retries."""
    _log(verbose)
    mq = load(app)
    if not mq.handlers:
        fail(f"{app} has no handlers: nothing would be consumed")
    _serve(mq, relay=False, consume=True)


def declare(app: AppArgument) -> None:
    """Create what is missing: tables, topics, queues, groups."""
    mq = load(app)
    with mq:
        mq.declare()
    say(f"declared: tables, topics and {len(mq.handlers)} groups of {app}")


def _serve(mq: ReliableMQ, *, relay: bool, consume: bool) -> None:
    with mq:
        mq.run(relay=relay, consume=consume)
