"""Options of a handler: their defaults, their bounds and which of them exclude each other."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq.errors import ConfigurationError, MissingExtraError
from reliable_mq.handlers import (
    Guarantee,
    GuaranteeName,
    HandlerRegistry,
    HandlerSpec,
    build_handler,
)
from reliable_mq.message import Topic
from reliable_mq.retry import RetryPolicy
from reliable_mq.settings import DeadLetterSettings, Settings

SETTINGS = Settings(retry=RetryPolicy(max_attempts=4))


def charge(order: dict[str, Any], session: Session) -> None: ...


def count(order: dict[str, Any]) -> None: ...


async def charge_async(order: dict[str, Any], session: AsyncSession) -> None: ...


def built(function: Callable[..., Any] = charge, **options: Any) -> HandlerSpec:
    options = {"topic": "orders", "group": "billing", "settings": SETTINGS, **options}
    return build_handler(function, frame=sys._getframe(1), **options)


def refusal(function: Callable[..., Any] = charge, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        built(function, **options)
    return str(refused.value)


def test_the_defaults_are_the_documented_ones():
    spec = built()
    assert spec.call.function is charge
    assert spec.key == ("orders", "billing")
    assert (spec.ordered, spec.concurrency, spec.transaction_size) == (False, 1, 1)
    assert spec.retry == SETTINGS.retry
    assert spec.guarantee is Guarantee.EFFECTIVELY_ONCE
    assert spec.timeout is None


def test_every_option_reaches_the_spec():
    retry = RetryPolicy(max_attempts=2)
    spec = built(
        charge_async,
        topic=Topic("payments"),
        group="shipping",
        ordered=True,
        concurrency=8,
        transaction_size=50,
        retry=retry,
        guarantee="effectively-once",
        timeout=timedelta(minutes=1),
    )
    assert spec.key == ("payments", "shipping")
    assert (spec.ordered, spec.concurrency, spec.transaction_size) == (True, 8, 50)
    assert (spec.retry, spec.timeout) == (retry, 60.0)


# --- topic and group -----------------------------------------------------------------------------


def test_the_group_falls_back_to_the_settings():
    assert built(group=None, settings=Settings(group="service")).group == "service"
    assert built(group="own", settings=Settings(group="service")).group == "own"


def test_without_any_group_a_handler_is_refused_with_the_reason():
    text = refusal(group=None, settings=Settings())
    assert "pass group=... or set settings.group" in text
    assert "halve each other's messages" in text


@pytest.mark.parametrize("options", [{"group": "a.b"}, {"group": ""}, {"topic": "a/b"}])
def test_a_name_that_is_not_valid_is_refused(options):
    assert "is not valid" in refusal(**options)


def test_a_topic_too_long_for_its_dead_letter_topic_is_refused_unless_none_is_published():
    long = "x" * 240
    assert "shorten the topic" in refusal(topic=long)
    silent = Settings(dead_letter=DeadLetterSettings(publish=False))
    assert built(topic=long, settings=silent).topic == long


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["concurrency", "transaction_size"])
@pytest.mark.parametrize("value", [0, -1, 1001, 1.5, "2", True, None])
def test_a_number_out_of_bounds_is_refused_with_value_and_bounds(option, value):
    text = refusal(**{option: value})
    assert f"{option} must be a whole number from 1 to 1000, got {value!r}" in text


@pytest.mark.parametrize("option", ["concurrency", "transaction_size"])
@pytest.mark.parametrize("value", [1, 1000])
def test_the_bounds_themselves_are_fine(option, value):
    assert getattr(built(**{option: value}), option) == value


# --- guarantees ----------------------------------------------------------------------------------


def test_the_strings_are_the_members():
    assert {member.value for member in Guarantee} == set(get_args(GuaranteeName))
    for name in ("at-most-once", "at-least-once", "effectively-once"):
        assert built(guarantee=name).guarantee is Guarantee(name)
        assert built(guarantee=Guarantee(name)).guarantee == name


def test_a_guarantee_that_does_not_exist_is_refused_with_those_that_do():
    text = refusal(guarantee="once")
    assert "guarantee 'once' is unknown" in text
    assert "at-most-once, at-least-once, effectively-once, exactly-once" in text


@pytest.mark.parametrize("guarantee", ["at-most-once", "at-least-once"])
@pytest.mark.parametrize("options", [{"ordered": True}, {"transaction_size": 2}])
def test_order_and_batches_need_effectively_once(guarantee, options):
    text = refusal(guarantee=guarantee, **options)
    ((option, value),) = options.items()
    assert f"{option}={value} needs guarantee 'effectively-once', not '{guarantee}'" in text


def test_retry_with_at_most_once_is_refused():
    text = refusal(guarantee="at-most-once", retry=RetryPolicy())
    assert "retry= has no meaning with guarantee 'at-most-once'" in text


def test_at_most_once_allows_a_single_attempt_whatever_the_settings_say():
    assert built(guarantee="at-most-once").retry.max_attempts == 1


def test_at_least_once_has_the_policy_of_the_settings():
    assert built(guarantee="at-least-once").retry == SETTINGS.retry


def test_exactly_once_has_the_policy_of_the_settings():
    spec = built(count, guarantee=Guarantee.EXACTLY_ONCE)
    assert (spec.guarantee, spec.retry) == (Guarantee.EXACTLY_ONCE, SETTINGS.retry)


@pytest.mark.parametrize("option", [{"ordered": True}, {"transaction_size": 2}])
def test_exactly_once_does_not_go_with_what_needs_the_database(option):
    text = refusal(count, guarantee="exactly-once", **option)
    assert "needs guarantee 'effectively-once', not 'exactly-once'" in text


def test_exactly_once_needs_the_dead_letter_topic():
    settings = SETTINGS.replace(dead_letter=DeadLetterSettings(publish=False))
    text = refusal(count, guarantee="exactly-once", settings=settings)
    assert "dead_letter.publish is off: switch it on" in text


@pytest.mark.parametrize(
    ("function", "asked"), [(charge, "Session"), (charge_async, "AsyncSession")]
)
def test_exactly_once_does_not_go_with_a_session(function, asked):
    text = refusal(function, guarantee="exactly-once")
    assert f"covers Kafka, not the database, but it asks for {asked}" in text


# --- retry and timeout ---------------------------------------------------------------------------


def test_a_retry_that_is_no_policy_is_refused():
    assert "retry must be a RetryPolicy, got int" in refusal(retry=3)


def test_a_timeout_on_a_sync_handler_is_refused():
    assert "timeout= needs an `async def` handler" in refusal(timeout=5)


@pytest.mark.parametrize("timeout", [-1, math.inf, math.nan, timedelta(seconds=-1), "soon", [], 0])
def test_a_timeout_that_is_no_duration_is_refused(timeout):
    text = refusal(charge_async, timeout=timeout)
    assert "timeout" in text
    assert text.startswith("handler tests.unit.test_handlers_spec.charge_async: ")


# --- the async driver ----------------------------------------------------------------------------


def test_an_async_handler_is_refused_at_once_where_its_driver_is_missing():
    def missing() -> None:
        raise MissingExtraError("pip install 'reliable-mq[postgresql]'")

    with pytest.raises(MissingExtraError, match="pip install"):
        built(charge_async, async_driver_available=missing)
    assert built(charge, async_driver_available=missing).key == ("orders", "billing")


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"group": None},
        {"concurrency": 0},
        {"transaction_size": 0},
        {"guarantee": "once"},
        {"guarantee": "exactly-once"},
        {"guarantee": "at-most-once", "ordered": True},
        {"guarantee": "at-most-once", "retry": RetryPolicy()},
        {"retry": 3},
        {"timeout": 5},
    ],
)
def test_a_refusal_names_the_handler_first(options):
    assert refusal(**options).startswith("handler tests.unit.test_handlers_spec.charge: ")


# --- the registry --------------------------------------------------------------------------------


def test_handlers_come_in_the_order_of_their_decoration():
    registry = HandlerRegistry()
    specs = [built(topic=topic, group=group) for topic in "ba" for group in ("y", "x")]
    for spec in specs:
        registry.add(spec)
    assert list(registry) == specs
    assert len(registry) == 4


def test_a_second_handler_for_topic_and_group_is_refused_naming_both():
    registry = HandlerRegistry()
    registry.add(built(charge))
    with pytest.raises(ConfigurationError) as refused:
        registry.add(built(count))
    text = str(refused.value)
    assert "test_handlers_spec.count: topic 'orders' has the handler" in text
    assert "test_handlers_spec.charge in group 'billing' already" in text
    assert [spec.call.function for spec in registry] == [charge]


def test_the_same_function_may_handle_several_topics_and_groups():
    registry = HandlerRegistry()
    for options in ({}, {"group": "audit"}, {"topic": "refunds"}):
        registry.add(built(charge, **options))
    assert len(registry) == 3


def test_of_many_threads_that_add_the_same_pair_one_wins():
    registry, start, refused = HandlerRegistry(), threading.Barrier(8), []

    def add() -> None:
        spec = built()
        start.wait()
        try:
            registry.add(spec)
        except ConfigurationError as error:
            refused.append(error)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(registry), len(refused)) == (1, 7)


def test_adding_while_somebody_iterates_is_safe():
    registry = HandlerRegistry()
    registry.add(built())
    for _ in registry:
        registry.add(built(group="audit"))
        break
    assert len(registry) == 2
