"""The environment: settings come of it, or an error that is ours or pydantic's."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from reliable_mq.errors import ConfigurationError
from reliable_mq.settings import PREFIX, Settings
from tests.fuzz.mutation import Mutator
from tests.fuzz.running import error_of, fuzz

_NAMES = tuple(
    PREFIX + name
    for name in (
        "BROKER_URL",
        "DATABASE_URL",
        "GROUP",
        "CLIENT_OPTIONS",
        "CLIENT_OPTIONS__SSL",
        "TABLE_PREFIX",
        "DB_SCHEMA",
        "AUTO_DECLARE",
        "MAX_MESSAGE_BYTES",
        "MAX_HEADER_COUNT",
        "MAX_HEADER_BYTES",
        "RETRY",
        "RETRY__MAX_ATTEMPTS",
        "RETRY__INITIAL_DELAY",
        "RETRY__JITTER",
        "RELAY",
        "RELAY__LEASE",
        "RELAY__PUBLISH_TIMEOUT",
        "CONSUMER__PREFETCH",
        "CONSUMER__LEASE",
        "INBOX__RETENTION",
        "DEAD_LETTER__TOPIC",
        "DEAD_LETTER__MAX_ERROR_BYTES",
        "RELAY__LEASE__DEEPER",
    )
)
_VALUES = (
    "",
    "0",
    "1",
    "-1",
    "30.5",
    "P3DT12H30M5S",
    "nan",
    "inf",
    "1e400",
    "9" * 400,
    "true",
    "null",
    "{}",
    "[]",
    '{"lease": 30, "publish_timeout": "20"}',
    '{"a": {"b": [1, 2, {"c": null}]}}',
    "[" * 300,
    "kafka://user:secret@h1,h2?mechanism=plain",
    "{topic}.{group}.dlq",
    "{topic}{topic}{group}" * 20,
    "billing",
    "g" * 65,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of the machine's, and no line for each that means nothing."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    log = logging.getLogger("reliable_mq")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


def _variables(mutator: Mutator) -> dict[str, str]:
    def name() -> str:
        found = mutator.pick(_NAMES)
        if mutator.chance(8):
            return PREFIX + mutator.argument_of((found.removeprefix(PREFIX),)).replace("=", "_")
        return found

    return {name(): mutator.argument_of(_VALUES) for _ in range(1 + mutator.below(4))}


def test_any_environment_makes_settings_or_an_error_that_is_documented() -> None:
    def check(variables: dict[str, str]) -> None:
        os.environ.update(variables)
        try:
            error = error_of((ConfigurationError, ValidationError), lambda: repr(Settings()))
        finally:
            for name in variables:
                os.environ.pop(name, None)
        assert error is None or "input_value" not in str(error)
        if isinstance(error, ValidationError):
            assert error.title == Settings.__name__
        # It holds this frame by its traceback. The collector does not see through pydantic's.
        del error

    # Each makes and validates the settings as a whole, which takes a millisecond.
    fuzz("settings", _variables, check, share=10)
