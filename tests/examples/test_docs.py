"""What the pages say is checked against what is there."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import MetaData, create_engine, text

from reliable_mq import ReliableMQ, Settings
from reliable_mq.retry import RetryPolicy
from reliable_mq.store.tables import build_tables
from tests.examples.conftest import ROOT, Example

PAGES = sorted(
    page
    for place in (ROOT, ROOT / "docs", ROOT / "examples")
    for page in (place.rglob("*.md") if place != ROOT else place.glob("*.md"))
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables in *text* by their first cell, without the backticks."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            found[cells[0].strip("`")] = cells[1:]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        leads_to = (page.parent / place).resolve() if place else page
        assert leads_to.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", leads_to.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_pages_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


# --- settings -----------------------------------------------------------------------------------


def fields(model: type[BaseModel], lead: str = "") -> dict[str, Any]:
    """Return each setting's dotted name with its default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= fields(type(default), f"{lead}{name}.")
        else:
            found[lead + name] = default
    return found


def shown(value: Any) -> str:
    """Return a default as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return {"14 days, 0:00:00": "14 days"}.get(str(value), str(value))


def test_every_setting_is_described_with_its_variable_and_default() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    described = rows(page.partition("\n## Settings\n")[2].partition("\n## ")[0])
    del described["setting"]
    settings = fields(Settings)
    assert set(described) == set(settings)
    for name, default in settings.items():
        variable, stated, *_ = described[name]
        assert stated.strip("`") == shown(default), name
        if name != "retry.reject_on":  # types cannot come from the environment
            assert variable == f"`RELIABLE_MQ_{name.upper().replace('.', '__')}`"


def test_the_stated_time_until_a_dead_letter_is_that_of_the_policy() -> None:
    policy = RetryPolicy()
    waits = range(1, policy.max_attempts)
    least = sum(policy.delay_after(attempt, lambda: 0.0) for attempt in waits)
    most = sum(policy.delay_after(attempt, lambda: 1.0) for attempt in waits)
    page = (ROOT / "docs/configuration.md").read_text()
    assert f"a dead letter after {least:.0f} to {most:.0f} s" in page


# --- brokers ------------------------------------------------------------------------------------


def test_every_option_of_a_broker_url_is_described() -> None:
    from reliable_mq_kafka.options import Options as KafkaOptions
    from reliable_mq_rabbitmq.options import Options as RabbitOptions
    from reliable_mq_redis.options import Options as RedisOptions

    page = (ROOT / "docs/brokers.md").read_text()
    described = {name.strip("`") for cell in rows(page) for name in cell.split("`, `")}
    of_the_url = {"hosts", "virtual_host", "user", "password", "client"}
    for options in (KafkaOptions, RabbitOptions, RedisOptions):
        for option in dataclasses.fields(options):
            assert option.name in described | of_the_url, (options, option.name)


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"])
def test_every_column_is_described(dialect: str) -> None:
    page = (ROOT / "docs/tables.md").read_text()
    common, *sections = re.split(r"^## |^(?=`topic_)", page, flags=re.MULTILINE)
    tables = build_tables(MetaData(), dialect=dialect, prefix="")
    for table in tables.metadata.sorted_tables:
        (section,) = (one for one in sections if one.startswith(f"`{table.name}`"))
        if table.name == "outbox_held":
            section += next(one for one in sections if one.startswith("`outbox`:"))
        for column in table.columns:
            assert f"`{column.name}`" in section, (table.name, column.name)
            assert f"| `{column.name}`" in common + section or column.name in ("owner", "epoch")


@pytest.fixture
def declared(store_url: str) -> str:
    """A database with a message in the outbox."""
    with ReliableMQ(Settings(database_url=store_url)) as mq:
        mq.declare()
        with mq.transaction():
            mq.publish("orders", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", key="ann")
    return store_url


def test_the_sql_of_the_pages_runs(declared: str) -> None:
    engine = create_engine(declared)
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}[engine.dialect.name]
    statements = [
        statement
        for block in blocks(ROOT / "docs/tables.md", "sql")
        for title, statement in re.findall(r"^-- (.+)\n([^;]+);", block, re.MULTILINE)
        if title in (kind, "every database")
    ]
    assert len(statements) == 5
    with engine.connect() as connection:
        times, keys, *_ = [connection.execute(text(one)).all() for one in statements]
    engine.dispose()
    assert str(times[0][0]).startswith("20")
    assert keys[0][0] == "ann"


def test_tables_made_by_a_migration_tool_need_only_their_version_row(store_url: str) -> None:
    with ReliableMQ(Settings(database_url=store_url)) as mq:
        metadata = MetaData()
        mq.include_tables(metadata)
        metadata.create_all(mq.store.engine)
        assert mq.store.check() == ["the version row is missing: run declare()"]
        mq.declare()
        assert mq.store.check() == []


# --- testing ------------------------------------------------------------------------------------


def test_the_pages_show_the_tests_of_the_quickstart() -> None:
    code = (ROOT / "examples/quickstart/test_orders.py").read_text()
    assert code in blocks(ROOT / "docs/testing.md", "python")
    (shown_in_readme,) = (one for one in blocks(ROOT / "README.md", "python") if "Harness" in one)
    assert shown_in_readme in code


def test_the_tests_of_the_quickstart_pass(example: Example) -> None:
    code = example.run("pytest", "-p", "no:cacheprovider", "examples/quickstart/test_orders.py")
    assert code == 0, example.said
    assert "3 passed" in example.said
