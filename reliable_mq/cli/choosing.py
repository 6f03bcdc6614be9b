"""Parameters that ``outbox`` and ``dlq`` share, and which records a command is meant for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from reliable_mq.cli.output import fail, say, with_progress

_BEYOND = 1 << 63
"""The first number that no database takes as an integer."""


def _storable(value: int | None) -> int | None:
    if value is not None and abs(value) >= _BEYOND:
        raise typer.BadParameter("the number is too large")
    return value


Id = Annotated[int | None, typer.Argument(metavar="ID", help="As ls shows it.", callback=_storable)]
OneId = Annotated[int, typer.Argument(metavar="ID", help="As ls shows it.", callback=_storable)]
All = Annotated[bool, typer.Option("--all", help="All of them, or all that the options name.")]
TopicOption = Annotated[str | None, typer.Option("--topic", help="Only of this topic.")]
GroupOption = Annotated[str | None, typer.Option("--group", help="Only of this group.")]
Limit = Annotated[int, typer.Option(min=1, help="Show so many at most.", callback=_storable)]
After = Annotated[int | None, typer.Option(help="Only those with a higher id.", callback=_storable)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]

PAGE = 500

Pages = Callable[[int | None], Sequence[int]]
"""From the id of the last record seen (None: from the start) to the ids of the next PAGE."""


def check_choice(id_: int | None, *, every: bool, **filters: str | None) -> None:
    """Refuse, as wrong usage, anything but an id, or ``--all`` with or without filters."""
    if (id_ is None) == (not every):
        raise typer.BadParameter("give an id, or --all")
    given = [f"--{name}" for name, value in filters.items() if value is not None]
    if given and not every:
        raise typer.BadParameter(f"{' and '.join(given)} only with --all")


def chosen(id_: int | None, pages: Pages) -> list[int]:
    """Return the id that was given, or all of *pages*."""
    if id_ is not None:
        return [id_]
    found: list[int] = []
    while True:
        page = pages(found[-1] if found else None)
        found.extend(page)
        if len(page) < PAGE:
            return found


def described(id_: int | None, count: int, what: str) -> str:
    """Return what is about to be changed, for a question."""
    if id_ is not None:
        return f"{what} {id_}"
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def each(ids: Sequence[int], act: Callable[[int], bool], doing: str) -> int:
    """Do *act* with each; return with how many it was done. Others may do the same meanwhile."""
    return sum(act(one) for one in with_progress(ids, doing))


def report(id_: int | None, count: int, *, done: str, otherwise: str) -> None:
    """Say how many; a single one that was not there is a failure."""
    if id_ is not None and not count:
        fail(otherwise)
    say(f"{count} {done}")
