"""Settings: from where each value comes, what is refused, and that no secret comes out again."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict
from rich.console import Console

from reliable_mq.durations import seconds
from reliable_mq.errors import ConfigurationError
from reliable_mq.retry import RetryPolicy
from reliable_mq.settings import (
    ConsumerSettings,
    DeadLetterSettings,
    InboxSettings,
    RelaySettings,
    Settings,
    _distance,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No variable of the machine's; `environment(NAME=value)` sets some."""
    import os

    for name in [n for n in os.environ if n.upper().startswith(("RELIABLE_MQ_", "SHOP_"))]:
        monkeypatch.delenv(name)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


# --- values --------------------------------------------------------------------------------------


def test_the_defaults_are_the_documented_ones():
    settings = Settings()
    assert settings.model_dump(exclude={"retry"}) == {
        "broker_url": "sql://",
        "database_url": "sqlite:///reliable_mq.db",
        "group": None,
        "client_options": {},
        "table_prefix": "reliable_mq_",
        "db_schema": None,
        "auto_declare": True,
        "max_message_bytes": 1_000_000,
        "max_header_count": 100,
        "max_header_bytes": 65536,
        "relay": {"batch_size": 500, "poll_interval": 1.0, "lease": 30.0, "publish_timeout": 20.0},
        "consumer": {
            "prefetch": 500,
            "lease": 30.0,
            "idle_in_transaction": 60.0,
            "shutdown_timeout": 30.0,
            "max_waiting_retries": 10_000,
        },
        "inbox": {"retention": 14 * 86400.0},
        "dead_letter": {"publish": True, "topic": "{topic}.{group}.dlq", "max_error_bytes": 8192},
    }
    assert settings.retry == RetryPolicy()


def test_values_come_from_the_environment_nested_with_two_underscores(environment):
    environment(
        RELIABLE_MQ_BROKER_URL="kafka://h1,h2",
        RELIABLE_MQ_AUTO_DECLARE="false",
        RELIABLE_MQ_CLIENT_OPTIONS='{"linger.ms": 5}',
        RELIABLE_MQ_RELAY__LEASE="60",
        RELIABLE_MQ_RELAY__PUBLISH_TIMEOUT="PT40S",
        RELIABLE_MQ_RETRY__MAX_ATTEMPTS="3",
        RELIABLE_MQ_DEAD_LETTER='{"publish": false}',
    )
    settings = Settings()
    assert settings.broker_url == "kafka://h1,h2"
    assert settings.auto_declare is False
    assert settings.client_options == {"linger.ms": 5}
    assert (settings.relay.lease, settings.relay.publish_timeout) == (60, 40)
    assert settings.relay.batch_size == 500
    assert settings.retry.max_attempts == 3
    assert settings.dead_letter.publish is False


def test_variables_are_read_in_any_case_of_letters(environment):
    environment(reliable_mq_group="billing")
    assert Settings().group == "billing"


def test_a_keyword_wins_over_the_environment(environment):
    environment(RELIABLE_MQ_GROUP="other", RELIABLE_MQ_RELAY__LEASE="77")
    settings = Settings(group="billing", relay=RelaySettings(lease=50))
    assert (settings.group, settings.relay.lease) == ("billing", 50)


def test_settings_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().group = "x"
    with pytest.raises(ValidationError, match="frozen"):
        Settings().relay.lease = 5


def test_settings_can_be_copied_and_pickled():
    settings = Settings(group="billing", client_options={"a": {"b": 1}})
    assert copy.deepcopy(settings) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own bytes


def test_durations_are_seconds_whatever_they_were_given_as():
    settings = Settings(inbox=InboxSettings(retention=timedelta(days=30)))
    assert settings.inbox.retention == 30 * 86400
    assert seconds(Settings().inbox.retention) == 14 * 86400


# --- what one field refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": "a.b"},
        {"group": ""},
        {"table_prefix": "a-b"},
        {"table_prefix": "x; drop table"},
        {"table_prefix": ""},
        {"db_schema": "a.b"},
        {"db_schema": 'a"b'},
        {"max_message_bytes": 0},
        {"max_header_count": 7},
        {"max_header_bytes": 1023},
        {"relay": {"batch_size": 0}},
        {"relay": {"lease": 0}},
        {"relay": {"poll_interval": -1}},
        {"consumer": {"prefetch": 0}},
        {"consumer": {"shutdown_timeout": "soon"}},
        {"inbox": {"retention": 0}},
        {"dead_letter": {"topic": "dlq"}},
        {"dead_letter": {"topic": "{topic}.dlq"}},
        {"dead_letter": {"topic": "{topic}/{group}"}},
        {"dead_letter": {"max_error_bytes": 10}},
        {"retry": {"max_attempts": 0}},
        {"relay": {"leese": 30}},
        {"brokr_url": "sql://"},
    ],
)
def test_a_wrong_field_is_pydantics_own_error_naming_the_field(wrong):
    with pytest.raises(ValidationError) as refused:
        Settings(**wrong)
    ((section, value),) = wrong.items()
    where = f"{section}.{next(iter(value))}" if isinstance(value, dict) else section
    assert where in str(refused.value)


# --- what contradicts each other -----------------------------------------------------------------


def test_a_publish_timeout_that_outlives_the_lease_is_refused_with_both_values():
    with pytest.raises(ConfigurationError, match=r"publish_timeout \(25 s\).*lease \(30 s\)"):
        Settings(relay=RelaySettings(publish_timeout=25))


@given(st.floats(0.01, 1e5), st.floats(0.01, 1e5))
def test_lease_and_publish_timeout_leave_a_fifth_of_the_lease(lease, timeout):
    relay = RelaySettings(lease=lease, publish_timeout=timeout)
    if timeout <= lease * 0.8:
        assert Settings(relay=relay).relay == relay
    else:
        with pytest.raises(ConfigurationError):
            Settings(relay=relay)


def test_a_retention_below_the_longest_retry_delay_is_refused_with_both_values():
    with pytest.raises(ConfigurationError, match=r"retention \(60 s\).*max_delay \(600 s\)"):
        Settings(inbox=InboxSettings(retention=60))


def test_a_dead_letter_topic_that_leaves_no_room_for_the_group_is_refused():
    with pytest.raises(ConfigurationError, match="dead-letter topic"):
        Settings(dead_letter=DeadLetterSettings(topic="x" * 200 + ".{topic}.{group}"))


def test_a_dead_letter_topic_is_filled_in_once():
    template = DeadLetterSettings(topic="dead.{group}.{topic}")
    assert template.topic_for("orders", "billing") == "dead.billing.orders"


def test_a_dead_letter_topic_that_gets_too_long_says_what_to_shorten():
    with pytest.raises(ConfigurationError, match="the limit is 249: shorten"):
        DeadLetterSettings().topic_for("x" * 245, "billing")


# --- typing errors in the environment ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RELIABLE_MQ_BROKER_URI", "RELIABLE_MQ_BROKER_URL"),
        ("RELIABLE_MQ_BROKRE_URL", "RELIABLE_MQ_BROKER_URL"),
        ("RELIABLE_MQ_BROKERURL", "RELIABLE_MQ_BROKER_URL"),
        ("RELIABLE_MQ_DATABASE_URLS", "RELIABLE_MQ_DATABASE_URL"),
        ("reliable_mq_grup", "RELIABLE_MQ_GROUP"),
        ("RELIABLE_MQ_RELAY_LEASE", "RELIABLE_MQ_RELAY__LEASE"),
        ("RELIABLE_MQ_CONSUMER__PREFTECH", "RELIABLE_MQ_CONSUMER__PREFETCH"),
    ],
)
def test_a_variable_that_looks_like_a_typing_error_is_an_error_with_the_match(
    environment, name, meant
):
    environment(**{name: "kafka://localhost"})
    with pytest.raises(ConfigurationError, match=rf"did you mean {meant}\?"):
        Settings()


@pytest.mark.parametrize("name", ["RELIABLE_MQ_SOMETHING_ELSE", "RELIABLE_MQ_RELAY__NEW_OPTION"])
def test_any_other_unknown_variable_is_a_warning_and_changes_nothing(environment, caplog, name):
    defaults = Settings()
    environment(**{name: "CANARY"})
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        assert Settings() == defaults
    assert name in caplog.text
    assert "CANARY" not in caplog.text


def test_known_variables_and_those_of_others_are_passed_over_in_silence(environment, caplog):
    environment(
        RELIABLE_MQ_GROUP="billing",
        RELIABLE_MQ_CLIENT_OPTIONS__ACKS="all",
        RELIABLEMQ_X="1",
        BROKER_URI="x",
    )
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        assert Settings().client_options == {"acks": "all"}
    assert caplog.text == ""


def _slow_distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        _slow_distance(one[1:], other) + 1,
        _slow_distance(one, other[1:]) + 1,
        _slow_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


@given(st.text("AB_", max_size=5), st.text("AB_", max_size=5))
@example("", "AB")
def test_the_distance_is_levenshteins_up_to_two(one, other):
    assert min(_distance(one, other), 3) == min(_slow_distance(one, other), 3)


# --- subclasses ----------------------------------------------------------------------------------


class ShopSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")

    rate: int = 1


class ReliableShopSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="RELIABLE_MQ_SHOP_")

    rate: int = 1


class SamePrefixSettings(Settings):
    stock_limit: int = 1
    webhook_password: str = ""


class BareSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="")

    rate: int = 1


def test_a_subclass_reads_its_own_prefix_and_finds_typing_errors_under_it(environment):
    environment(SHOP_RATE="7", SHOP_BROKER_URL="memory://", SHOP_CLIENT_OPTIONS__ACKS="all")
    settings = ShopSettings()
    assert (settings.rate, settings.broker_url) == (7, "memory://")
    assert settings.client_options == {"acks": "all"}
    environment(SHOP_RATES="8")
    with pytest.raises(ConfigurationError, match=r"SHOP_RATES: did you mean SHOP_RATE\?"):
        ShopSettings()


def test_the_base_knows_the_prefixes_of_its_subclasses(environment, caplog):
    environment(RELIABLE_MQ_SHOP_RATE="7", RELIABLE_MQ_SHOP_WHATEVER="x")
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        Settings()
    assert caplog.text == ""
    assert ReliableShopSettings().rate == 7


def test_the_base_knows_the_fields_of_a_subclass_with_the_same_prefix(environment, caplog):
    environment(RELIABLE_MQ_STOCK_LIMIT="7")
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        Settings()
    assert caplog.text == ""
    assert SamePrefixSettings().stock_limit == 7


def test_a_subclass_without_a_prefix_does_not_judge_the_rest_of_the_environment(
    environment, caplog
):
    environment(GROUPS="wheel", RATE="3")
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        assert BareSettings().rate == 3
    assert caplog.text == ""


# --- secrets -------------------------------------------------------------------------------------

CANARY = "CANARY"
_SECRETS: dict[str, Any] = {
    "broker_url": f"kafka://u:{CANARY}@h1:1,h2/?sasl.password={CANARY}",
    "database_url": f"postgresql+psycopg://app:p@{CANARY}@localhost/app",
    "client_options": {
        "sasl.password": CANARY,
        "ssl": {"key.pem": CANARY},
        "sentinels": [{"password": CANARY}, f"redis://:{CANARY}@h"],
    },
}


def _shown(value: object) -> str:
    console = Console(file=StringIO(), width=500)
    console.print(value)
    return f"{value!r} {value} {value:} %s {console.file.getvalue()}" % (value,)  # type: ignore[attr-defined]


def test_no_secret_shows_in_repr_str_format_or_rich():
    settings = Settings(**_SECRETS)
    shown = _shown(settings) + _shown(SamePrefixSettings(webhook_password=CANARY))
    assert CANARY not in shown
    assert "localhost/app" in shown


def test_no_secret_shows_in_a_log_at_any_level(caplog):
    with caplog.at_level(logging.DEBUG):
        settings = Settings(**_SECRETS)
        logging.getLogger("app").debug("%s %r", settings, settings)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"broker_url": [CANARY]},
        {"client_options": CANARY},
        {"database_url": {"password": CANARY}},
        {"relay": {"lease": CANARY}},
        {"relay": CANARY},
        {"retry": {"max_attempts": CANARY, "reject_on": CANARY}},
        {"retry": {"initial_delay": CANARY}},
        {"passwrod": CANARY},
        {"dead_letter": {"unknown": CANARY}},
        {"max_message_bytes": CANARY},
        {"relay": {"lease": 1}},
    ],
)
def test_no_secret_shows_in_an_error_or_its_traceback(wrong):
    with pytest.raises((ValidationError, ConfigurationError)) as refused:
        Settings(**{**_SECRETS, **wrong})
    assert CANARY not in f"{refused.value} {refused.value!r}"
    assert CANARY not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELIABLE_MQ_CLIENT_OPTIONS", f'{{"password": "{CANARY}"'),
        ("RELIABLE_MQ_RELAY", CANARY),
        ("RELIABLE_MQ_RELAY__LEASE", CANARY),
        ("RELIABLE_MQ_MAX_MESSAGE_BYTES", CANARY),
        ("RELIABLE_MQ_BROKER_URI", f"amqp://u:{CANARY}@h"),
        ("RELIABLE_MQ_DEAD_LETTER__TOPIC", CANARY),
    ],
)
def test_no_secret_of_the_environment_shows_in_an_error(environment, name, value):
    environment(**{name: value})
    with pytest.raises((ValidationError, ConfigurationError)) as refused:
        Settings()
    assert CANARY not in "".join(traceback.format_exception(refused.value))


def test_a_variable_that_is_no_json_is_a_configuration_error_naming_the_field(environment):
    environment(RELIABLE_MQ_CLIENT_OPTIONS="{")
    with pytest.raises(ConfigurationError, match=r"client_options.*must be JSON"):
        Settings()


def test_no_secret_shows_when_somebody_tries_to_change_settings():
    settings, url = Settings(), _SECRETS["database_url"]
    with pytest.raises(ValidationError) as refused:
        settings.database_url = url
    assert CANARY not in "".join(traceback.format_exception(refused.value))


# --- replace -------------------------------------------------------------------------------------


def test_replace_changes_what_is_named_and_keeps_the_rest():
    settings = Settings(group="billing", relay=RelaySettings(lease=60))
    changed = settings.replace(group="shipping")
    assert changed == Settings(group="shipping", relay=RelaySettings(lease=60))
    assert settings.group == "billing"


def test_replace_keeps_the_class_and_what_counts_as_given():
    changed = ShopSettings(rate=5, group="a").replace(broker_url="memory://")
    assert type(changed) is ShopSettings
    assert changed.rate == 5
    assert changed.model_fields_set == {"rate", "group", "broker_url"}


def test_replace_checks_everything_again():
    with pytest.raises(ValidationError):
        Settings().replace(group="a.b")
    with pytest.raises(ValidationError):
        Settings().replace(grop="a")
    with pytest.raises(ConfigurationError, match="publish_timeout"):
        Settings().replace(relay=RelaySettings(lease=10))


def test_replace_does_not_read_the_environment_again(environment):
    environment(RELIABLE_MQ_CLIENT_OPTIONS='{"a": 1}')
    settings = Settings()
    environment(RELIABLE_MQ_GROUP="late", RELIABLE_MQ_CONSUMER__LEASE="99")
    changed = settings.replace(client_options={"b": 2})
    assert (changed.group, changed.consumer) == (None, ConsumerSettings())
    assert changed.client_options == {"b": 2}
