"""What the pages say of the doctor is checked against what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import text

from reliable_mq import ReliableMQ, Settings
from reliable_mq.doctor import diagnose
from reliable_mq.store.inspection import mysql, postgresql

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/doctor.md").read_text()
BROKERS = (ROOT / "docs/brokers.md").read_text()
SOURCES = [
    *(ROOT / "reliable_mq/doctor").glob("*.py"),
    *(ROOT / "reliable_mq/store/inspection").glob("*.py"),
]


def described() -> set[str]:
    """The codes in the first cells of the tables."""
    cells = re.findall(r"^\| (`[^|]+`) \| (?:error|warning|info)", PAGE, re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`([a-z-]+)`", cell)}


def existing() -> set[str]:
    found: set[str] = set()
    for source in SOURCES:
        for code in re.findall(r'code=f?"([^"]+)"', source.read_text()):
            found.add(code.replace("{product.lower()}", "mariadb"))
        for pair in re.findall(r'code="([a-z-]+)" if \w+ else "([a-z-]+)"', source.read_text()):
            found |= set(pair)
    rules = [("postgresql", rule) for rule in postgresql._RULES]
    rules += [("mariadb", rule) for rule in (*mysql._RULES, *mysql._GLOBAL_RULES)]
    found |= {rule.code or f"{name}-{rule.setting.replace('_', '-')}" for name, rule in rules}
    return {code for code in found if "{" not in code}


def test_every_finding_is_described_and_nothing_else() -> None:
    assert described() | {"not-checked"} == existing()


@pytest.mark.parametrize("kind", ["kafka", "redis"])
def test_every_finding_of_a_broker_is_described_and_nothing_else(kind: str) -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| (?:error|warning|info)", BROKERS, re.MULTILINE)
    told = {code for row in rows for code in re.findall(rf"`({kind}-[a-z-]+)`", row)}
    found: set[str] = set()
    for source in (ROOT / f"adapters/reliable_mq_{kind}").glob("*.py"):
        found |= set(re.findall(rf'"({kind}-[a-z-]+)"', source.read_text()))
    assert told == found


def test_a_group_that_was_given_up_is_gone_after_what_the_page_says(store_url: str) -> None:
    statements = re.findall(r"DELETE FROM [^;`\n]+", PAGE)
    assert len(statements) == 4
    with ReliableMQ(Settings(database_url=store_url)) as old:
        old.handler("orders", group="old")(_ignore)
        old.declare()
        with old.transaction():
            old.publish("orders", "unicorn")
        old.run_until_idle(60)
    with ReliableMQ(Settings(database_url=store_url)) as mq:
        mq.handler("orders", group="new")(_ignore)
        mq.declare()
        assert "group-orphaned" in {one.code for one in diagnose(mq)}
        with mq.store.transaction() as connection:
            for statement in statements:
                connection.execute(text(statement))
        assert "group-orphaned" not in {one.code for one in diagnose(mq)}


def _ignore(order: str) -> None:
    """Does nothing."""
