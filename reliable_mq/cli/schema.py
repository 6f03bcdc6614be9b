"""``schema``: the library's tables."""

from __future__ import annotations

import typer

from reliable_mq.cli.output import cell, fail, say
from reliable_mq.cli.targets import AppOption, open_target

app = typer.Typer(no_args_is_help=True, help="The tables in the application's database.")


@app.command()
def create(app: AppOption = None) -> None:
    """Create the tables that are missing; alters nothing."""
    with open_target(app, creates=True) as mq:
        mq.store.create()
        say(f"the tables are there: {mq.store.shown_url}")


@app.command()
def check(app: AppOption = None) -> None:
    """Compare the tables with what this version needs; exit code 1 where they differ."""
    with open_target(app) as mq:
        found = mq.store.check()
    for difference in found:
        say(cell(difference))
    if found:
        fail(f"{len(found)} differences: schema create makes what is missing")
    say("the tables are as they should be")


@app.command()
def sql(app: AppOption = None) -> None:
    """Print the statements that create the tables; asks no database."""
    with open_target(app, creates=True) as mq:
        typer.echo(mq.store.ddl())
