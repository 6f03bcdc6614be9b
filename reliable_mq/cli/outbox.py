"""``outbox``: what is committed and not confirmed yet; rows refused for good wait for a person."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reliable_mq.app import ReliableMQ
from reliable_mq.cli import choosing
from reliable_mq.cli.choosing import After, All, Id, Json, Limit, OneId, TopicOption, Yes
from reliable_mq.cli.content import headers_json, shown_body, to_base64
from reliable_mq.cli.output import confirm, fail, print_fields, print_json, print_table, say
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.durations import seconds
from reliable_mq.store.codec import raw_pairs
from reliable_mq.store.outbox.held import DiscardTooEarlyError, OutboxDesk, OutboxEntry

app = typer.Typer(no_args_is_help=True, help="Messages that are committed and not sent yet.")


def _desk(mq: ReliableMQ) -> OutboxDesk:
    relay = mq.settings.relay
    return OutboxDesk(mq.store, discard_after=seconds(relay.publish_timeout) + seconds(relay.lease))


@app.command("ls")
def ls(
    held: Annotated[bool, typer.Option("--held", help="Only those refused for good.")] = False,
    topic: TopicOption = None,
    limit: Limit = 100,
    after: After = None,
    app: AppOption = None,
    json: Json = False,
) -> None:
    """List messages by rising id."""
    with open_target(app) as mq:
        only = True if held else None
        found = _desk(mq).entries(held=only, topic=topic, limit=limit, after=after)
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
def show(id_: OneId, app: AppOption = None, json: Json = False) -> None:
    """Show one message whole."""
    with open_target(app) as mq:
        found = _desk(mq).show(id_)
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
        print_json(record | {"body_base64": to_base64(found.body)})
        return
    print_fields(record.items())
    say("")
    say(shown_body(found.body))


@app.command("retry")
def retry(
    id_: Id = None, all_: All = False, topic: TopicOption = None, app: AppOption = None
) -> None:
    """Put a held message back to its place in the outbox, before what waits behind it."""
    choosing.check_choice(id_, every=all_, topic=topic)
    with open_target(app) as mq:
        desk = _desk(mq)
        count = choosing.each(_chosen(desk, id_, topic), desk.retry, "putting back")
    choosing.report(id_, count, done="put back", otherwise=_not_held(id_))


@app.command("discard")
def discard(
    id_: Id = None,
    all_: All = False,
    topic: TopicOption = None,
    yes: Yes = False,
    app: AppOption = None,
) -> None:
    """Delete a held message for good; what waits behind it goes on without it."""
    choosing.check_choice(id_, every=all_, topic=topic)
    with open_target(app) as mq:
        desk = _desk(mq)
        ids = _chosen(desk, id_, topic)
        if ids:
            what = choosing.described(id_, len(ids), "held message")
            confirm(f"Delete {what} for good?", yes=yes)
        too_early: list[str] = []
        count = choosing.each(ids, lambda one: _discard(desk, one, too_early), "discarding")
    if too_early:
        say(f"{count} discarded")
        fail(f"{len(too_early)} not yet: {too_early[-1]}")
    choosing.report(id_, count, done="discarded", otherwise=_not_held(id_))


def _discard(desk: OutboxDesk, id_: int, too_early: list[str]) -> bool:
    """Discard one; where it is too early for that, note why and let the others go on."""
    try:
        return desk.discard(id_)
    except DiscardTooEarlyError as error:
        too_early.append(str(error))
        return False


def _chosen(desk: OutboxDesk, id_: int | None, topic: str | None) -> list[int]:
    def page(after: int | None) -> list[int]:
        found = desk.entries(held=True, topic=topic, limit=choosing.PAGE, after=after)
        return [entry.id for entry in found]

    return choosing.chosen(id_, page)


def _not_held(id_: int | None) -> str:
    return f"message {id_} is not held: it was put back or discarded, or never was"


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
