"""The command tree."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from typer.core import TyperGroup

from reliable_mq.cli import dlq, outbox, schema, serving
from reliable_mq.cli.output import fail, print_json, show_status
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.errors import ReliableMQError
from reliable_mq.redaction import redact_url


class Group(TyperGroup):
    """Turns what a person can mend into one line and exit code 1; anything else is our bug."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except ReliableMQError as error:
            fail(str(error))
        except (ValidationError, SQLAlchemyError) as error:
            fail(redact_url(str(error)).split("\n[SQL:", 1)[0])


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


@app.command()
def demo() -> None:
    """Show the whole chain on a temporary SQLite file: no server, nothing is left behind."""
    from reliable_mq.cli.demo import run_demo

    if not run_demo():
        sys.exit(1)


@app.command()
def status(
    app: AppOption = None,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show the outbox and every known group: what waits, what failed."""
    with open_target(app) as mq:
        found = mq.status()
    if json:
        print_json(found.as_json())
    else:
        show_status(found)
