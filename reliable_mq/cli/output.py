"""How commands speak: tables for people, JSON for machines, errors on the other stream.

Names, keys and causes come from outside. On their way to a terminal every character that could
steer it is shown as an escape; in JSON the encoder does the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from reliable_mq.redaction import redact_url
from reliable_mq.status import Status

T = TypeVar("T")

_CELL = 200
_WITHOUT_A_TERMINAL = 100_000
"""Characters a line may have where nobody looks: one record a line, for grep and its friends."""


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WITHOUT_A_TERMINAL
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


console = _console(stderr=False)
errors = _console(stderr=True)


def say(text: str) -> None:
    """Print a line, or several, as they are."""
    console.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """Print a line that does not stop the command."""
    _complain("warning", "yellow", text)


def fail(text: str, code: int = 1) -> NoReturn:
    """Say in one line what is wrong, without secrets, and end."""
    _complain("error", "red", text)
    raise typer.Exit(code)


def _complain(word: str, style: str, text: str) -> None:
    # Redacted with its first word: a text that begins with a URL would count as one URL.
    line = visible(" ".join(redact_url(f"{word}: {text}").split()))
    shown = Text(line)
    shown.stylize(style, 0, len(word) + 1)
    errors.print(shown, soft_wrap=True)


def print_json(value: object) -> None:
    """Print *value* as JSON, in ASCII; times in ISO 8601."""
    json.dump(value, sys.stdout, indent=2, default=_plain)
    sys.stdout.write("\n")


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be shown as JSON")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows, each cell a single line of bounded length."""
    _print_table(columns, ([_cut(cell(value)) for value in row] for row in rows))


def print_uncut(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows, each cell a single line that is folded where the terminal ends."""
    _print_table(columns, ([cell(value) for value in row] for row in rows))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one record, a field a row, uncut."""
    _print_table(("field", "value"), ([name, cell(value)] for name, value in fields))


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    console.print(table)


def cell(value: object) -> str:
    """Return *value* as one harmless line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return visible(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."


def visible(text: str, *, keep: str = "") -> str:
    """Return *text* with what is not printable as an escape, but for the characters of *keep*.

    That covers controls, escape sequences, marks that turn the direction of writing, and lone
    surrogates.
    """
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is gone for good. A no ends with 1, nobody to ask with 2."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail("this deletes for good, and there is no terminal to ask on: give --yes", code=2)
    typer.confirm(question, abort=True)


def with_progress(items: Sequence[T], doing: str) -> Iterable[T]:
    """Iterate over *items*; a bar shows how far it is where somebody looks."""
    quiet = len(items) < 2 or not sys.stderr.isatty()
    return track(items, f"{doing}...", console=errors, transient=True, disable=quiet)


def show_status(status: Status) -> None:
    """Print a status for a person."""
    outbox = status.outbox
    print_table(
        ("outbox: pending", "oldest", "held", "unroutable"),
        [(outbox.pending, _age(outbox.oldest_age), outbox.held, outbox.unroutable)],
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


def _age(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.1f} s"
