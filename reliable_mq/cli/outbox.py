"""``outbox``: what is committed and not confirmed yet; rows refused for good wait for a person."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import typer
from rich.progress import track

from reliable_mq.app import ReliableMQ
from reliable_mq.cli.dlq import All, Id, Json, TopicOption, Yes, headers_json, shown_body
from reliable_mq.cli.output import confirm, console, fail, print_json, print_table, say
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.durations import seconds
from reliable_mq.store.codec import raw_pairs
from reliable_mq.store.outbox.held import OutboxDesk, OutboxEntry

app = typer.Typer(no_args_is_help=True, help="Messages that are committed and not sent yet.")

PAGE = 500


def _held(mq: ReliableMQ) -> OutboxDesk:
    relay = mq.settings.relay
    return OutboxDesk(mq.store, discard_after=seconds(relay.publish_timeout) + seconds(relay.lease))


@app.command("ls")
def ls(
    held: Annotated[bool, typer.Option("--held", help="Only those refused for good.")] = False,
    topic: TopicOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many at most.")] = 100,
    after: Annotated[int | None, typer.Option(help="Only those with a higher id.")] = None,
    app: AppOption = None,
    json: Json = False,
) -> None:
    """List messages by rising id."""
    with open_target(app) as mq:
        only = True if held else None
        found = _held(mq).entries(held=only, topic=topic, limit=limit, after=after)
    if json:
        print_json([as_json(one) for one in found])
        return
    print_table(
        ("id", "created at", "topic", "key", "held", "attempts", "cause"),
        [(e.id, e.created_at, e.topic, e.key, e.held, e.attempts, e.cause) for e in found],
    )
    if len(found) == limit:
        say(f"there may be more: --after {found[-1].id}")


@app.command("show")
def show(
    id_: Annotated[int, typer.Argument(metavar="ID")], app: AppOption = None, json: Json = False
) -> None:
    """Show one message whole."""
    with open_target(app) as mq:
        found = _held(mq).show(id_)
    if found is None:
        fail(f"there is no message {id_} in the outbox: it was sent, or never was")
    entry = found.entry
    record = as_json(entry) | {
        "attempts": entry.attempts,
        "try_at": entry.try_at,
        "held_at": entry.held_at,
        "content_type": found.content_type,
        "headers": None if found.headers is None else headers_json(raw_pairs(found.headers)),
    }
    if json:
        print_json(record | {"body_base64": base64.b64encode(found.body).decode()})
        return
    print_table(("field", "value"), record.items())
    say("")
    say(shown_body(found.body))


@app.command("retry")
def retry(
    id_: Id = None, all_: All = False, topic: TopicOption = None, app: AppOption = None
) -> None:
    """Put a held message back to its place in the outbox, before what waits behind it."""
    with open_target(app) as mq:
        held = _held(mq)
        ids = _chosen(held, id_, all_, topic)
        count = sum(held.retry(one) for one in track(ids, "retrying...", console=console,
                                                     transient=True))  # fmt: skip
    _report(id_, count, "put back")


@app.command("discard")
def discard(
    id_: Id = None,
    all_: All = False,
    topic: TopicOption = None,
    yes: Yes = False,
    app: AppOption = None,
) -> None:
    """Delete a held message for good; what waits behind it goes on without it."""
    if id_ is not None or all_:
        what = f"message {id_}" if id_ is not None else "all these held messages"
        confirm(f"Delete {what} for good?", yes=yes)
    with open_target(app) as mq:
        held = _held(mq)
        ids = _chosen(held, id_, all_, topic)
        count = sum(held.discard(one) for one in track(ids, "discarding...", console=console,
                                                       transient=True))  # fmt: skip
    _report(id_, count, "discarded")


def _chosen(held: OutboxDesk, id_: int | None, all_: bool, topic: str | None) -> list[int]:
    if (id_ is None) == (not all_):
        raise typer.BadParameter("give an id, or --all")
    if id_ is not None:
        return [id_]
    found: list[int] = []
    after: int | None = None
    while True:
        page = held.entries(held=True, topic=topic, limit=PAGE, after=after)
        found.extend(entry.id for entry in page)
        if len(page) < PAGE:
            return found
        after = page[-1].id


def _report(id_: int | None, count: int, done: str) -> None:
    if id_ is not None and not count:
        fail(f"message {id_} was not {done}: it is not held (any more)")
    say(f"{count} {done}")


def as_json(entry: OutboxEntry) -> dict[str, Any]:
    """Return what ``ls --json`` shows of one."""
    return {
        "id": entry.id,
        "topic": entry.topic,
        "key": entry.key,
        "message_id": entry.message_id,
        "created_at": entry.created_at,
        "held": entry.held,
        "cause": entry.cause,
    }
