"""``dlq``: dead letters, shown, replayed or discarded."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

from reliable_mq import operations
from reliable_mq.app import ReliableMQ
from reliable_mq.cli import choosing
from reliable_mq.cli.choosing import (
    After,
    All,
    GroupOption,
    Id,
    Json,
    Limit,
    OneId,
    TopicOption,
    Yes,
)
from reliable_mq.cli.content import headers_json, shown_body, text_or_base64, to_base64
from reliable_mq.cli.output import confirm, fail, print_fields, print_json, print_table, say, warn
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.errors import IncompleteDeadLetterError, MessageTooLargeError
from reliable_mq.store.dead_letters import StoredDeadLetter

app = typer.Typer(no_args_is_help=True, help="Dead letters: messages a group gave up on.")


@app.command("ls")
def ls(
    topic: TopicOption = None,
    group: GroupOption = None,
    limit: Limit = 100,
    after: After = None,
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
def show(id_: OneId, app: AppOption = None, json: Json = False) -> None:
    """Show one dead letter whole."""
    with open_target(app) as mq:
        found = operations.dead_letter(mq.store, id_)
    if found is None:
        fail(_gone(id_))
    record = as_json(found) | {
        "message_time": found.letter.message.time,
        "content_type": found.letter.message.content_type,
        "replays": found.replays,
        "complete": found.letter.complete,
        "raw_headers": [[name, text_or_base64(value)] for name, value in found.headers],
    }
    if json:
        print_json(record)
        return
    print_fields((name, value) for name, value in record.items() if name != "body_base64")
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
    choosing.check_choice(id_, every=all_, topic=topic, group=group)
    with open_target(app) as mq:
        left: list[str] = []
        ids = _chosen(mq, id_, topic, group)
        count = choosing.each(ids, partial(_replay_or_leave, mq, left), "replaying")
    for reason in left:
        warn(reason)
    if id_ is None or not left:
        choosing.report(id_, count, done="replayed", otherwise=_gone(id_))
    if left:
        raise typer.Exit(1)


def _replay_or_leave(mq: ReliableMQ, left: list[str], id_: int) -> bool:
    """Replay it, or note in *left* why it cannot be: the others of ``--all`` can."""
    try:
        return mq.replay(id_)
    except (IncompleteDeadLetterError, MessageTooLargeError) as error:
        left.append(str(error))
        return False


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
    choosing.check_choice(id_, every=all_, topic=topic, group=group)
    with open_target(app) as mq:
        ids = _chosen(mq, id_, topic, group)
        if ids:
            what = choosing.described(id_, len(ids), "dead letter")
            confirm(f"Delete {what} for good?", yes=yes)
        count = choosing.each(ids, mq.discard, "discarding")
    choosing.report(id_, count, done="discarded", otherwise=_gone(id_))


def _chosen(mq: ReliableMQ, id_: int | None, topic: str | None, group: str | None) -> list[int]:
    def page(after: int | None) -> list[int]:
        found = operations.dead_letters(
            mq.store, topic=topic, group=group, limit=choosing.PAGE, after=after
        )
        return [one.letter.id for one in found]

    return choosing.chosen(id_, page)


def _gone(id_: int | None) -> str:
    return f"there is no dead letter {id_}: it was replayed or discarded, or never was"


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
        "body_base64": to_base64(letter.message.body),
        "headers": headers_json(stored.headers),
    }
