"""``doctor``: findings as a table and as JSON, and what its exit code says."""

from __future__ import annotations

import json
from pathlib import Path

from reliable_mq import ReliableMQ
from tests.cli.conftest import Cli, publish


def test_a_sound_application_ends_with_0_and_only_information(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    done = cli("doctor", "--app", "shop:mq")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("error: 0, warning: 0, info: ")
    assert "no-handlers" not in done.stdout


def test_findings_are_a_table_with_what_why_and_how_to_mend_it(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    publish(mq, "unicorn", topic="nowhere")
    mq.run_until_idle(consume=False)
    done = cli("doctor", "--app", "shop:mq")
    assert done.returncode == 0
    head, first, *_ = done.stdout.splitlines()
    assert head.split("  ")[0] == "severity"
    for column in ("what", "why it matters", "how to mend it", "code"):
        assert column in head
    assert first.startswith("warning")
    assert "topic nowhere: 1 messages in the outbox have no place to go" in first
    assert first.rstrip().endswith("outbox-unroutable")


def test_json_holds_each_part_of_a_finding_and_an_error_ends_with_1(
    cli: Cli, shop: Path, mq: ReliableMQ
) -> None:
    cli.env["RELIABLE_MQ_BROKER_URL"] = "memory://"
    done = cli("doctor", "--app", "shop:mq", "--json")
    assert done.returncode == 1
    found = {one["code"]: one for one in json.loads(done.stdout)}
    assert set(found["tables-foreign"]) == {
        "code",
        "severity",
        "subject",
        "what",
        "why",
        "remedy",
    }
    assert found["tables-foreign"]["severity"] == "error"


def test_without_an_application_the_settings_of_the_environment_are_looked_at(
    cli: Cli, mq: ReliableMQ
) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stderr
    codes = [one["code"] for one in json.loads(done.stdout)]
    assert "no-handlers" in codes
    assert "group-idle" in codes


def test_a_database_that_is_not_there_is_a_finding_and_is_not_made(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)[0]["code"] == "database-missing"
    assert list(cli.folder.iterdir()) == []


def test_broker_and_database_that_are_away_are_findings_without_their_passwords(cli: Cli) -> None:
    cli.env["RELIABLE_MQ_DATABASE_URL"] = "postgresql://app:canary@127.0.0.1:1/app"
    cli.env["RELIABLE_MQ_BROKER_URL"] = "redis://:canary@127.0.0.1:1/0"
    for arguments in ((), ("--json",)):
        done = cli("doctor", *arguments)
        assert done.returncode == 1
        assert "database-unreachable" in done.stdout
        assert "broker-unreachable" in done.stdout
        assert "canary" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_an_application_that_does_not_exist_is_wrong_usage(cli: Cli) -> None:
    assert cli("doctor", "--app", "nowhere:mq").returncode == 2
