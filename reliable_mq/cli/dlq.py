"""``dlq``: dead letters, shown, replayed or discarded."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.progress import track

from reliable_mq import operations
from reliable_mq.app import ReliableMQ
from reliable_mq.cli.output import confirm, console, fail, print_json, print_table, say
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.store.dead_letters import StoredDeadLetter
from reliable_mq.wire import RawHeaders

app = typer.Typer(no_args_is_help=True, help="Dead letters: messages a group gave up on.")

Id = Annotated[int | None, typer.Argument(help="The dead letter's id.")]
All = Annotated[bool, typer.Option("--all", help="All of them, or all of --topic and --group.")]
TopicOption = Annotated[str | None, typer.Option("--topic", help="Only of this topic.")]
GroupOption = Annotated[str | None, typer.Option("--group", help="Only of this group.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]

PAGE = 500


@app.command("ls")
def ls(
    topic: TopicOption = None,
    group: GroupOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many at most.")] = 100,
    after: Annotated[int | None, typer.Option(help="Only those with a higher id.")] = None,
    app: AppOption = None,
    json: Json = False,
) -> None:
    """List dead letters by rising id."""
    with open_target(app) as mq:
        found = operations.dead_letters(
            mq.store, topic=topic, group=group, limit=limit, after=after
        )
    if json:
        print_json([as_json(one) for one in found])
        return
    print_table(
        ("id", "died at", "topic", "group", "key", "attempts", "cause"),
        [
            (d.id, d.died_at, d.message.topic, d.group, d.message.key, d.attempts, d.cause)
            for d in (one.letter for one in found)
        ],
    )
    if len(found) == limit:
        say(f"there may be more: --after {found[-1].letter.id}")


@app.command("show")
def show(
    id_: Annotated[int, typer.Argument(metavar="ID")], app: AppOption = None, json: Json = False
) -> None:
    """Show one dead letter whole."""
    with open_target(app) as mq:
        found = operations.dead_letter(mq.store, id_)
    if found is None:
        fail(f"there is no dead letter {id_}: it was replayed or discarded, or never was")
    record = as_json(found) | {
        "message_time": found.letter.message.time,
        "content_type": found.letter.message.content_type,
        "replays": found.replays,
        "raw_headers": [[name, _text(value)] for name, value in found.headers],
    }
    if json:
        print_json(record)
        return
    del record["body_base64"]
    print_table(("field", "value"), record.items())
    say("")
    say(shown_body(found.letter.message.body))


@app.command("replay")
def replay(
    id_: Id = None,
    all_: All = False,
    topic: TopicOption = None,
    group: GroupOption = None,
    app: AppOption = None,
) -> None:
    """Let the group handle a dead letter again; once, however often this is called."""
    with open_target(app) as mq:
        count = _each(mq, id_, all_, topic, group, "replaying", mq.replay)
    _report(id_, count, "replayed")


@app.command("discard")
def discard(
    id_: Id = None,
    all_: All = False,
    topic: TopicOption = None,
    group: GroupOption = None,
    yes: Yes = False,
    app: AppOption = None,
) -> None:
    """Delete a dead letter for good."""
    what = f"dead letter {id_}" if id_ is not None else "all these dead letters"
    if id_ is not None or all_:
        confirm(f"Delete {what} for good?", yes=yes)
    with open_target(app) as mq:
        count = _each(mq, id_, all_, topic, group, "discarding", mq.discard)
    _report(id_, count, "discarded")


def _report(id_: int | None, count: int, done: str) -> None:
    if id_ is not None and not count:
        fail(f"dead letter {id_} was not {done}: it is not there (any more)")
    say(f"{count} {done}")


def _each(
    mq: ReliableMQ,
    id_: int | None,
    all_: bool,
    topic: str | None,
    group: str | None,
    doing: str,
    act: Callable[[int], bool],
) -> int:
    """Do *act* with one or with all; return with how many it was done."""
    if (id_ is None) == (not all_):
        raise typer.BadParameter("give an id, or --all")
    if id_ is not None:
        if topic is not None or group is not None:
            raise typer.BadParameter("--topic and --group go with --all")
        return int(act(id_))
    ids = list(_all_ids(mq, topic, group))
    return sum(act(one) for one in track(ids, f"{doing}...", console=console, transient=True))


def _all_ids(mq: ReliableMQ, topic: str | None, group: str | None) -> Iterator[int]:
    after: int | None = None
    while True:
        page = operations.dead_letters(
            mq.store, topic=topic, group=group, limit=PAGE, after=after
        )
        yield from (one.letter.id for one in page)
        if len(page) < PAGE:
            return
        after = page[-1].letter.id


def as_json(stored: StoredDeadLetter) -> dict[str, Any]:
    """Return what ``ls --json`` shows of one."""
    letter = stored.letter
    return {
        "id": letter.id,
        "topic": letter.message.topic,
        "group": letter.group,
        "message_id": letter.message.id,
        "key": letter.message.key,
        "attempts": letter.attempts,
        "cause": letter.cause,
        "died_at": letter.died_at,
        "body_base64": base64.b64encode(letter.message.body).decode(),
        "headers": headers_json(stored.headers),
    }


def headers_json(headers: RawHeaders) -> dict[str, Any]:
    """Return header pairs as an object; bytes that are no text as ``{"base64": ...}``."""
    return {name: _text(value) for name, value in headers}


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def shown_body(body: bytes) -> str:
    """Return the beginning of a body as harmless text, or as base64 where it is none."""
    shown = body[:10_000]
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        return f"body, {len(body)} bytes, base64: {base64.b64encode(shown).decode()}"
    more = "" if len(body) <= len(shown) else f"\n... ({len(body)} bytes in all)"
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text) + more
