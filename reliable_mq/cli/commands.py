"""The command tree, and what it makes of errors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from typer.core import TyperGroup

from reliable_mq.cli import dlq, doctor, outbox, schema, serving
from reliable_mq.cli.choosing import Json
from reliable_mq.cli.output import fail, print_json, say, show_status, visible
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.errors import ReliableMQError
from reliable_mq.settings import NESTING, PREFIX, Settings


class Group(TyperGroup):
    """Turns what a person can mend into one line and exit code 1; anything else is a bug."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Refuse, as wrong usage, bytes that are no text: no database would take them."""
        for argument in args:
            if not _is_text(argument):
                raise typer.BadParameter(f"{visible(argument)} is no text in UTF-8")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except ReliableMQError as error:
            fail(str(error))
        except ValidationError as error:
            if error.title != Settings.__name__:
                raise
            fail(_invalid_settings(error))
        except DBAPIError as error:
            fail(f"the database: {error.orig}")


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid_settings(error: ValidationError) -> str:
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(_problem(one["loc"], one["msg"]) for one in problems)


def _problem(location: tuple[int | str, ...], text: str) -> str:
    parts = [str(part) for part in location]
    variable = f"{PREFIX}{NESTING.join(parts).upper()}"
    return f"setting {'.'.join(parts)} ({variable}): {text.removeprefix('Value error, ')}"


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Outbox, inbox, retries and dead letters over your broker and database.",
)
app.add_typer(outbox.app, name="outbox")
app.add_typer(dlq.app, name="dlq")
app.add_typer(schema.app, name="schema")
app.command()(serving.run)
app.command()(serving.relay)
app.command()(serving.consume)
app.command()(serving.declare)
app.command()(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"reliable-mq {version('reliable-mq')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Outbox, inbox, retries and dead letters over your broker and database."""


@app.command()
def demo() -> None:
    """Show the whole chain on a temporary SQLite file: no server, nothing is left behind."""
    from reliable_mq.cli.demo import run_demo

    if not run_demo():
        raise typer.Exit(1)


@app.command()
def status(app: AppOption = None, json: Json = False) -> None:
    """Show the outbox and every known group: what waits, what failed."""
    with open_target(app) as mq:
        found = mq.status()
    if json:
        print_json(found.as_json())
    else:
        show_status(found)
