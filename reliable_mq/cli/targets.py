"""What a command works on: an application named ``module:attr``, or the environment's settings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from reliable_mq.app import ReliableMQ
from reliable_mq.cli.output import fail
from reliable_mq.settings import Settings
from reliable_mq.store.urls import family_of, is_memory, sqlite_file

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
    """Return the application *name*; a usage error says what is wrong with it.

    What its module or factory raises passes through: it is the application's own.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(module_name.split(".")) or not attribute:
        raise typer.BadParameter(f"{name!r} is not of the form module:attr")
    found = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise typer.BadParameter(f"{module_name} has no {attribute!r}")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, ReliableMQ):
        found = found()
    if not isinstance(found, ReliableMQ):
        raise typer.BadParameter(f"{name} is of type {type(found).__name__}, not a ReliableMQ")
    return found


def _import(name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only where it is the named module, or a package of its: a missing dependency is a bug
        # of the application, whose traceback shows it.
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise typer.BadParameter(f"there is no module {error.name!r} in {here}") from error
        raise


@contextmanager
def using(mq: ReliableMQ) -> Iterator[ReliableMQ]:
    """Close *mq* after the block; what its database says ends the command in one line."""
    with mq:
        try:
            yield mq
        except DBAPIError as error:
            where = f"database {mq.store.shown_url}"
            if mq.store.dialect.is_missing_table(error):
                fail(f"{where} has no tables of reliable-mq: schema create makes them")
            fail(f"{where}: {error.orig}")


@contextmanager
def open_target(name: str | None, *, creates: bool = False) -> Iterator[ReliableMQ]:
    """Give the application *name*, or one without handlers made from the environment.

    Unless the command *creates* it, an SQLite file must exist: to look must not make one.
    """
    with using(ReliableMQ(Settings()) if name is None else load(name)) as mq:
        if not creates:
            _check_file(mq)
        yield mq


def _check_file(mq: ReliableMQ) -> None:
    url = mq.store.engine.url
    if family_of(url) != "sqlite" or is_memory(url) or Path(sqlite_file(url)).exists():
        return
    fail(
        f"there is no database {sqlite_file(url)}: set RELIABLE_MQ_DATABASE_URL, give --app, "
        "or let schema create make it"
    )
