"""``schema``: the tables, made, compared, printed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.cli.conftest import Cli


def test_create_then_check(cli: Cli) -> None:
    created = cli("schema", "create")
    assert created.returncode == 0, created.stderr
    assert created.stdout.startswith("the tables are there: sqlite:///")
    assert cli("schema", "create").returncode == 0
    checked = cli("schema", "check")
    assert (checked.returncode, checked.stdout) == (0, "the tables are as they should be\n")


def test_check_names_what_is_missing_and_create_makes_it(cli: Cli) -> None:
    cli("schema", "create")
    with sqlite3.connect(cli.folder / "shop.db") as database:
        database.execute("DROP TABLE reliable_mq_dead_letter")
        database.execute("DROP INDEX reliable_mq_inbox_done")
    database.close()
    checked = cli("schema", "check")
    assert checked.returncode == 1
    assert "table reliable_mq_dead_letter is missing\n" in checked.stdout
    assert "reliable_mq_inbox_done" in checked.stdout
    assert checked.stderr == "error: 2 differences: schema create makes what is missing\n"
    assert cli("schema", "create").returncode == 0
    assert cli("schema", "check").returncode == 0


def test_check_reports_tables_of_another_broker(cli: Cli) -> None:
    cli("schema", "create")
    cli.env["RELIABLE_MQ_BROKER_URL"] = "memory://"
    checked = cli("schema", "check")
    assert checked.returncode == 1
    assert "belong to the broker 'sql'" in checked.stdout


def test_sql_prints_statements_that_make_the_tables_and_asks_no_database(cli: Cli) -> None:
    statements = cli("schema", "sql").stdout
    assert list(cli.folder.iterdir()) == []
    with sqlite3.connect(cli.folder / "shop.db") as database:
        database.executescript(statements)
    database.close()
    checked = cli("schema", "check")
    assert checked.stdout == "the version row is missing: run declare()\n"
    assert cli("schema", "create").returncode == 0
    assert cli("schema", "check").returncode == 0


def test_sql_is_that_of_the_configured_database(cli: Cli) -> None:
    cli.env["RELIABLE_MQ_DATABASE_URL"] = "postgresql://app:canary@127.0.0.1:1/app"
    cli.env["RELIABLE_MQ_TABLE_PREFIX"] = "mq_"
    printed = cli("schema", "sql")
    assert printed.returncode == 0, printed.stderr
    assert "CREATE TABLE mq_outbox" in printed.stdout
    assert "BYTEA" in printed.stdout
    assert "canary" not in printed.stdout


def test_to_look_does_not_create_a_database(cli: Cli) -> None:
    for command in (("status",), ("outbox", "ls"), ("dlq", "ls"), ("schema", "check")):
        done = cli(*command)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: there is no database {cli.folder / 'shop.db'}: ")
    assert list(cli.folder.iterdir()) == []


def test_a_database_without_our_tables_is_named_with_the_remedy(cli: Cli) -> None:
    Path(cli.folder / "shop.db").touch()
    for command in (("status",), ("outbox", "ls"), ("dlq", "ls"), ("dlq", "replay", "--all")):
        done = cli(*command)
        assert done.returncode == 1, command
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        assert "shop.db" in done.stderr
