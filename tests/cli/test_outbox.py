"""``status`` and ``outbox``: what is not sent, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from reliable_mq import ReliableMQ
from tests.cli.conftest import Cli, publish, until


@pytest.fixture
def held(cli: Cli, shop: Path, mq: ReliableMQ) -> ReliableMQ:
    """One held message (id 1), one of its key behind it (id 2), one with no topic (id 3)."""
    publish(mq, "x" * 500, "behind")
    publish(mq, "lost", topic="nowhere", key="bob")
    # Refused for good by a relay that is allowed less than the publisher was.
    cli.env["RELIABLE_MQ_MAX_MESSAGE_BYTES"] = "100"
    process = cli.start("relay", "shop:mq")
    until(lambda: mq.status().outbox.held == mq.status().outbox.unroutable == 1, "held")
    assert process.stop() == 0
    del cli.env["RELIABLE_MQ_MAX_MESSAGE_BYTES"]
    return mq


def test_status_as_json_has_exactly_the_promised_keys(cli: Cli, held: ReliableMQ) -> None:
    done = cli("status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["outbox"].pop("oldest_age") > 0
    assert status == {
        "outbox": {"pending": 2, "held": 1, "unroutable": 1},
        "groups": [
            {"topic": "orders", "group": "billing", "lag": 0, "retries": 0, "dead_letters": 0}
        ],
        "parts": {"relay": "off", "consumer": "off", "retries": "off"},
    }


def test_status_for_people_shows_outbox_and_groups(cli: Cli, held: ReliableMQ) -> None:
    lines = [line.split() for line in cli("status").stdout.splitlines()]
    assert lines[0] == ["outbox:", "pending", "oldest", "held", "unroutable"]
    pending, _, unit, held_, unroutable = lines[1]
    assert (pending, unit, held_, unroutable) == ("2", "s", "1", "1")
    assert lines[3] == ["topic", "group", "lag", "retries", "dead", "letters"]
    assert lines[4] == ["orders", "billing", "0", "0", "0"]


def test_status_can_take_its_settings_from_an_application(cli: Cli, held: ReliableMQ) -> None:
    (cli.folder / "other.py").write_text(
        "from reliable_mq import ReliableMQ, Settings\n"
        f"mq = ReliableMQ(Settings(database_url={cli.env['RELIABLE_MQ_DATABASE_URL']!r}))\n"
    )
    cli.env["RELIABLE_MQ_DATABASE_URL"] = "sqlite:///elsewhere.db"
    assert json.loads(cli("status", "--json", "--app", "other:mq").stdout)["outbox"]["held"] == 1
    assert cli("status", "--json").returncode == 1


def test_ls_as_json_has_exactly_the_promised_keys(cli: Cli, held: ReliableMQ) -> None:
    rows = json.loads(cli("outbox", "ls", "--json").stdout)
    assert [row["id"] for row in rows] == [1, 2, 3]
    first, behind, lost = rows
    assert list(first) == ["id", "topic", "key", "message_id", "created_at", "held", "cause"]
    assert (first["topic"], first["key"], first["held"]) == ("orders", "ann", True)
    assert datetime.fromisoformat(first["created_at"]).tzinfo is not None
    assert "100" in first["cause"]
    assert (behind["held"], behind["cause"]) == (False, None)
    assert (lost["topic"], lost["held"]) == ("nowhere", False)
    assert "nowhere" in lost["cause"]


def test_ls_can_be_narrowed_and_continued(cli: Cli, held: ReliableMQ) -> None:
    def ids(*options: str) -> list[int]:
        return [row["id"] for row in json.loads(cli("outbox", "ls", "--json", *options).stdout)]

    assert ids("--held") == [1]
    assert ids("--topic", "nowhere") == [3]
    assert ids("--after", "1", "--limit", "1") == [2]


def test_ls_for_people_is_a_line_a_message(cli: Cli, held: ReliableMQ) -> None:
    header, *lines = cli("outbox", "ls").stdout.splitlines()
    assert header.split() == ["id", "created", "at", "topic", "key", "held", "attempts", "cause"]
    assert [line.split()[5] for line in lines] == ["yes", "no", "no"]


def test_show_shows_the_message_whole(cli: Cli, held: ReliableMQ) -> None:
    said = cli("outbox", "show", "1").stdout
    assert '"' + "x" * 500 + '"' in said
    assert "application/json" in said
    record = json.loads(cli("outbox", "show", "1", "--json").stdout)
    assert record["held_at"] is not None
    assert record["body_base64"]
    done = cli("outbox", "show", "99")
    assert done.returncode == 1
    assert "there is no message 99 in the outbox" in done.stderr


def test_retry_puts_a_held_message_back_before_what_waits_behind_it(
    cli: Cli, held: ReliableMQ, shop: Path
) -> None:
    assert cli("outbox", "retry", "1").stdout == "1 put back\n"
    again = cli("outbox", "retry", "1")
    assert again.returncode == 1
    assert "message 1 is not held" in again.stderr
    charged = shop / "charged"
    process = cli.start("run", "shop:mq")
    # What is sent and not handled yet would be left by the stop.
    until(lambda: charged.exists() and charged.read_text().count("\n") >= 2, "charged")
    until(lambda: held.status().outbox.pending == 1, "sent")
    assert process.stop() == 0
    assert charged.read_text().split() == ["x" * 500, "behind"]


def test_retry_all_puts_back_what_is_held_of_a_topic(cli: Cli, held: ReliableMQ) -> None:
    assert cli("outbox", "retry", "--all", "--topic", "nowhere").stdout == "0 put back\n"
    assert cli("outbox", "retry", "--all").stdout == "1 put back\n"


def test_discard_waits_until_no_relay_can_still_send_the_message(
    cli: Cli, held: ReliableMQ
) -> None:
    for choice in ("1", "--all"):
        done = cli("outbox", "discard", choice, "--yes")
        assert (done.returncode, done.stdout) == (1, "0 discarded\n")
        assert done.stderr.startswith("error: 1 not yet: message 1 was held a moment ago")
    cli.env |= {"RELIABLE_MQ_RELAY__LEASE": "0.02", "RELIABLE_MQ_RELAY__PUBLISH_TIMEOUT": "0.01"}
    assert cli("outbox", "discard", "1", "--yes").stdout == "1 discarded\n"
    assert held.status().outbox.held == 0
    assert cli("outbox", "discard", "1", "--yes").returncode == 1
    assert cli("outbox", "discard", "--all", "--yes").stdout == "0 discarded\n"


def test_discard_without_a_terminal_wants_yes(cli: Cli, held: ReliableMQ) -> None:
    done = cli("outbox", "discard", "--all", stdin="y\n")
    assert done.returncode == 2
    assert "give --yes" in done.stderr
    assert held.status().outbox.held == 1


@pytest.mark.parametrize(
    "arguments",
    [("retry",), ("discard",), ("retry", "1", "--all"), ("discard", "1", "--topic", "orders")],
)
def test_an_unclear_choice_is_wrong_usage(
    usage: Callable[..., int], arguments: tuple[str, ...]
) -> None:
    assert usage("outbox", *arguments) == 2
