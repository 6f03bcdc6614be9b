"""What a command works on: an application named ``module:attr``, or the environment's settings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from reliable_mq.app import ReliableMQ
from reliable_mq.settings import Settings

AppArgument = Annotated[
    str, typer.Argument(metavar="MODULE:ATTR", help="A ReliableMQ, or a function that returns one.")
]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE:ATTR",
        help="Take settings and handlers from this application instead of the environment.",
    ),
]


def load(name: str) -> ReliableMQ:
    """Return the application *name*; a usage error says what is wrong with it."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise typer.BadParameter(f"{name!r} is not of the form module:attr")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise typer.BadParameter(f"there is no module {error.name!r} here") from error
        raise
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise typer.BadParameter(f"{module_name} has no {attribute!r}")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, ReliableMQ):
        found = found()
    if not isinstance(found, ReliableMQ):
        raise typer.BadParameter(f"{name} is {type(found).__name__}, not a ReliableMQ")
    return found


@contextmanager
def open_target(name: str | None) -> Iterator[ReliableMQ]:
    """Give the application *name*, or one without handlers made from the environment."""
    mq = ReliableMQ(Settings()) if name is None else load(name)
    try:
        yield mq
    finally:
        mq.close()
