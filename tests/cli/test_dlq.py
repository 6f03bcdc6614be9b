"""``dlq``: looking at dead letters, replaying and discarding them."""

from __future__ import annotations

import base64
import json
import os
import pty
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, update

from reliable_mq import Reject, ReliableMQ, Settings
from tests.cli.conftest import COMMAND, PATIENCE, Cli, publish, until

HOSTILE = "\x1b[2Jgone\r\x9b31m\u202eneddih\x07"


@pytest.fixture
def dead(cli: Cli) -> Iterator[ReliableMQ]:
    """Two dead letters of orders/billing and one of refunds/billing, ids 1 to 3."""
    with ReliableMQ(Settings(database_url=cli.env["RELIABLE_MQ_DATABASE_URL"])) as mq:
        for topic in ("orders", "refunds"):
            mq.handler(mq.topic(topic, bytes), group="billing")(_reject)
        mq.declare()
        with mq.transaction():
            mq.publish("orders", b'{"id": 1}', key="ann", headers={"who": "shop"}, message_id="m-1")
            mq.publish("orders", b"\xff\x00", message_id="m-2", headers={"raw": b"\xfe"})
        mq.run_until_idle()
        publish(mq, b"third", topic="refunds")
        mq.run_until_idle()
        yield mq


def _reject(body: bytes) -> None:
    raise Reject("no such customer")


def listed(cli: Cli, *options: str) -> list[dict[str, Any]]:
    done = cli("dlq", "ls", "--json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_ls_as_json_has_exactly_the_promised_keys(cli: Cli, dead: ReliableMQ) -> None:
    first, second, third = listed(cli)
    assert list(first) == [
        "id",
        "topic",
        "group",
        "message_id",
        "key",
        "attempts",
        "cause",
        "died_at",
        "body_base64",
        "headers",
    ]
    assert datetime.fromisoformat(first.pop("died_at")).tzinfo is not None
    assert first.pop("headers")["who"] == "shop"
    assert first == {
        "id": 1,
        "topic": "orders",
        "group": "billing",
        "message_id": "m-1",
        "key": "ann",
        "attempts": 1,
        "cause": "Reject: no such customer",
        "body_base64": base64.b64encode(b'{"id": 1}').decode(),
    }
    assert base64.b64decode(second["body_base64"]) == b"\xff\x00"
    assert second["headers"]["raw"] == {"base64": base64.b64encode(b"\xfe").decode()}
    assert second["key"] is None
    assert third["topic"] == "refunds"


def test_ls_can_be_narrowed_and_continued(cli: Cli, dead: ReliableMQ) -> None:
    assert [one["id"] for one in listed(cli, "--topic", "orders")] == [1, 2]
    assert listed(cli, "--group", "nobody") == []
    assert [one["id"] for one in listed(cli, "--limit", "2")] == [1, 2]
    assert [one["id"] for one in listed(cli, "--after", "2")] == [3]


def test_ls_for_people_is_a_line_a_letter_and_says_how_to_go_on(cli: Cli, dead: ReliableMQ) -> None:
    done = cli("dlq", "ls", "--limit", "2")
    header, first, second, more = done.stdout.splitlines()
    assert header.split() == ["id", "died", "at", "topic", "group", "key", "attempts", "cause"]
    assert first.split()[0] == "1"
    assert first.rstrip().endswith("Reject: no such customer")
    assert second.split()[0] == "2"
    assert more == "there may be more: --after 2"


def test_show_shows_everything_a_person_needs(cli: Cli, dead: ReliableMQ) -> None:
    said = cli("dlq", "show", "1").stdout
    for expected in ("m-1", "ann", "no such customer", "who", "shop", '{"id": 1}'):
        assert expected in said
    assert "2 bytes, base64: /wA=" in cli("dlq", "show", "2").stdout
    record = json.loads(cli("dlq", "show", "2", "--json").stdout)
    assert record["body_base64"] == "/wA="
    assert record["replays"] == 0
    assert ["raw", {"base64": "/g=="}] in record["raw_headers"]


def test_show_of_a_letter_that_is_not_there_fails(cli: Cli, dead: ReliableMQ) -> None:
    done = cli("dlq", "show", "99")
    assert done.returncode == 1
    assert done.stderr == (
        "error: there is no dead letter 99: it was replayed or discarded, or never was\n"
    )


def test_nothing_from_outside_reaches_the_terminal_raw(cli: Cli, dead: ReliableMQ) -> None:
    # What the library would have cleaned or refused: written by somebody else.
    table = dead.store.tables.dead_letter
    with dead.transaction() as session:
        session.execute(
            update(table)
            .where(table.c.id == 1)
            .values(cause=HOSTILE, message_key=HOSTILE.encode(), body=HOSTILE.encode())
        )
    for arguments in (("ls",), ("show", "1"), ("ls", "--json"), ("show", "1", "--json")):
        said = cli("dlq", *arguments).stdout
        assert "gone" in said
        assert not set(said) & set(HOSTILE) - set("2Jgone31mneddih["), arguments
    assert "\\x1b[2Jgone\\x0d\\x9b31m\\u202eneddih\\x07" in cli("dlq", "ls").stdout


def test_a_long_text_body_is_cut_between_its_characters(cli: Cli, dead: ReliableMQ) -> None:
    table = dead.store.tables.dead_letter
    body = ("x" + "\u20ac" * 9_000).encode()
    with dead.transaction() as session:
        session.execute(update(table).where(table.c.id == 1).values(body=body))
    said = cli("dlq", "show", "1").stdout
    assert "x\u20ac\u20ac" in said
    assert f"... ({len(body)} bytes in all; --json shows them)" in said


def test_replay_lets_the_group_handle_it_once_however_often_it_is_called(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    publish(mq, "unicorn")
    process = cli.start("run", "shop:mq")
    until(mq.dead_letters, "a dead letter")
    (shop / "mended").touch()
    (letter,) = mq.dead_letters()
    assert cli("dlq", "replay", str(letter.id)).stdout == "1 replayed\n"
    again = cli("dlq", "replay", str(letter.id))
    assert again.returncode == 1
    assert "it was replayed or discarded, or never was" in again.stderr
    until((shop / "charged").exists, "charged")
    assert process.stop() == 0
    assert (shop / "charged").read_text() == "unicorn\n"
    assert mq.dead_letters() == []


@pytest.fixture
def incomplete(dead: ReliableMQ) -> int:
    """A fourth dead letter, of orders/billing, that lacks its body; its id."""

    @event.listens_for(dead.store.engine, "connect")
    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 150_000)

    publish(dead, bytes(120_000))
    dead.store.dispose()
    dead.run_until_idle()
    return dead.dead_letters()[-1].id


def test_what_a_dead_letter_lacks_is_shown_and_its_replay_refused(
    cli: Cli, dead: ReliableMQ, incomplete: int
) -> None:
    cause = "incomplete: lacks its body of 120000 bytes: the database takes 150000 bytes at once"
    record = json.loads(cli("dlq", "show", str(incomplete), "--json").stdout)
    assert (record["complete"], record["body_base64"]) == (False, "")
    assert record["cause"].startswith(cause)
    assert cause in cli("dlq", "show", str(incomplete)).stdout
    assert json.loads(cli("dlq", "show", "1", "--json").stdout)["complete"] is True
    refused = cli("dlq", "replay", str(incomplete))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"dead letter {incomplete} cannot be replayed, it is not the whole" in refused.stderr


def test_replay_all_leaves_what_is_incomplete_and_says_so(
    cli: Cli, dead: ReliableMQ, incomplete: int
) -> None:
    done = cli("dlq", "replay", "--all")
    assert (done.returncode, done.stdout) == (1, "3 replayed\n")
    assert f"dead letter {incomplete} cannot be replayed" in done.stderr
    assert [one["id"] for one in listed(cli)] == [incomplete]
    assert cli("dlq", "discard", str(incomplete), "--yes").stdout == "1 discarded\n"


def test_replay_all_takes_only_the_topic_and_group_named(cli: Cli, dead: ReliableMQ) -> None:
    done = cli("dlq", "replay", "--all", "--topic", "orders", "--group", "billing")
    assert (done.returncode, done.stdout) == (0, "2 replayed\n")
    assert [one["id"] for one in listed(cli)] == [3]
    assert cli("dlq", "replay", "--all", "--group", "nobody").stdout == "0 replayed\n"
    assert cli("dlq", "replay", "--all").stdout == "1 replayed\n"


def test_discard_without_a_terminal_wants_yes(cli: Cli, dead: ReliableMQ) -> None:
    for arguments in (("1",), ("--all",)):
        done = cli("dlq", "discard", *arguments, stdin="y\n")
        assert done.returncode == 2
        assert "no terminal to ask on: give --yes" in done.stderr
    assert len(listed(cli)) == 3
    assert cli("dlq", "discard", "1", "--yes").stdout == "1 discarded\n"
    assert cli("dlq", "discard", "1", "--yes").returncode == 1
    done = cli("dlq", "discard", "--all", "--topic", "orders", "-y")
    assert done.stdout == "1 discarded\n"
    assert [one["id"] for one in listed(cli)] == [3]


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 3), ("y", 0, 1)])
def test_discard_asks_on_a_terminal(
    cli: Cli, dead: ReliableMQ, answer: str, code: int, left: int
) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "dlq", "discard", "--all", "--topic", "orders"],
        cwd=cli.folder,
        env=cli.env,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        said = b""
        while b"[y/N]" not in said:
            said += os.read(controller, 1024)
        assert b"Delete 2 dead letters for good?" in said
        os.write(controller, f"{answer}\n".encode())
        assert process.wait(PATIENCE) == code
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert len(listed(cli)) == left


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay",),
        ("discard",),
        ("replay", "1", "--all"),
        ("discard", "1", "--all", "--yes"),
        ("replay", "1", "--topic", "orders"),
        ("replay", "--group", "billing"),
        ("show",),
        ("show", "one"),
        ("ls", "--limit", "0"),
    ],
)
def test_an_unclear_choice_is_wrong_usage(
    usage: Callable[..., int], arguments: tuple[str, ...]
) -> None:
    assert usage("dlq", *arguments) == 2
