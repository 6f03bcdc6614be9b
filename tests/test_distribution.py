"""The distribution as it is installed: what is in it and where it is imported from."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

PACKAGES = [
    "reliable_mq",
    "reliable_mq_kafka",
    "reliable_mq_rabbitmq",
    "reliable_mq_redis",
    "reliable_mq_sql",
]
SCHEMES = {
    "sql": "reliable_mq_sql",
    "memory": "reliable_mq",
    "kafka": "reliable_mq_kafka",
    "kafka+ssl": "reliable_mq_kafka",
    "amqp": "reliable_mq_rabbitmq",
    "amqps": "reliable_mq_rabbitmq",
    "redis": "reliable_mq_redis",
    "rediss": "reliable_mq_redis",
    "redis+sentinel": "reliable_mq_redis",
    "redis+cluster": "reliable_mq_redis",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_is_typed_and_is_the_installed_one(name: str) -> None:
    place = Path(importlib.import_module(name).__path__[0])
    assert (place / "py.typed").exists()
    if os.environ.get("RMQ_TESTS_RUN_ON") == "wheel":
        root = Path(__file__).parent.parent
        assert place.parent not in (root, root / "adapters"), "the checkout shadows the wheel"


def test_each_scheme_leads_to_its_adapter() -> None:
    found = importlib.metadata.entry_points(group="reliable_mq.adapters")
    assert {entry.name: entry.module.partition(".")[0] for entry in found} == SCHEMES


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_adapter_can_be_loaded(scheme: str) -> None:
    (entry,) = importlib.metadata.entry_points(group="reliable_mq.adapters", name=scheme)
    assert callable(entry.load())


def test_the_oldest_versions_are_those_that_are_tried() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    oldest = dict(re.sub(r"\[.*?\]", "", one).split(">=", 1) for one in wanted if ">=" in one)
    del oldest["typing-extensions"]
    tried = (root / "tests" / "lowest.txt").read_text().splitlines()
    assert dict(line.split("==") for line in tried if not line.startswith("#")) == oldest
