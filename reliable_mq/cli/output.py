"""How commands speak: tables for people, JSON for machines, errors on the other stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reliable_mq.status import Status

console = Console()
errors = Console(stderr=True)


def fail(text: str, code: int = 1) -> NoReturn:
    """Say what is wrong and end."""
    errors.print(f"[red]error:[/red] {escape(text)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print *value* as JSON; times in ISO 8601."""
    json.dump(value, sys.stdout, indent=2, default=_plain)
    sys.stdout.write("\n")


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be shown as JSON")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table whose cells are shown as text, whatever they hold."""
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(escape(cell(value)) for value in row))
    console.print(table)


def cell(value: object) -> str:
    """Return *value* as one line without control characters: names come from outside."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    text = str(value)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)[:200]


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is gone for good; end with 1 on a no."""
    if not yes:
        typer.confirm(question, abort=True)


def show_status(status: Status) -> None:
    """Print a status for a person."""
    outbox = status.outbox
    age = "-" if outbox.oldest_age is None else f"{outbox.oldest_age:.1f} s"
    print_table(
        ("outbox: pending", "oldest", "held", "unroutable"),
        [(outbox.pending, age, outbox.held, outbox.unroutable)],
    )
    say("")
    if not status.groups:
        say("no groups are declared")
        return
    print_table(
        ("topic", "group", "lag", "retries", "dead letters"),
        [
            (topic, group, one.lag, one.retries, one.dead_letters)
            for (topic, group), one in status.groups.items()
        ],
    )
