"""The policy is a pure function; these tests recompute it from the documented formula."""

from __future__ import annotations

import copy
import math
import pickle
import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reliable_mq.durations import seconds
from reliable_mq.retry import GiveUp, Reject, Retry, RetryPolicy, TryLater, TryNow

_durations = st.floats(0, 1e6) | st.timedeltas(timedelta(0), timedelta(days=30))


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    first, longest = sorted([draw(_durations), draw(_durations)], key=seconds)
    return RetryPolicy(
        max_attempts=draw(st.integers(1, 1000)),
        immediate_attempts=draw(st.integers(1, 10)),
        initial_delay=first,
        max_delay=longest,
        multiplier=draw(st.floats(1, 1000)),
        jitter=draw(st.floats(0, 10)),
    )


def _formula(policy: RetryPolicy, attempt: int, random_value: float) -> float:
    first, longest = seconds(policy.initial_delay), seconds(policy.max_delay)
    exponent = math.log(first) + (attempt - 1) * math.log(policy.multiplier) if first else -math.inf
    base = longest if exponent >= 700 else first * policy.multiplier ** (attempt - 1)
    return min(longest, base if first else 0.0) * (1 + policy.jitter * random_value)


@given(policies(), st.integers(1, 1_000_000), st.floats(0, 1, exclude_max=True))
def test_the_delay_follows_the_documented_formula_for_any_attempt(policy, attempt, value):
    if seconds(policy.initial_delay) == 0:
        assert policy.delay_after(attempt, lambda: value) == 0
        return
    delay = policy.delay_after(attempt, lambda: value)
    if attempt <= 100:
        assert delay == pytest.approx(_formula(policy, attempt, value), rel=1e-9, abs=1e-300)
    assert math.isfinite(delay)
    assert 0 <= delay <= seconds(policy.max_delay) * (1 + policy.jitter)


@given(policies(), st.integers(1, 500))
def test_without_jitter_delays_never_shrink_and_never_pass_the_maximum(policy, attempt):
    now = policy.delay_after(attempt, lambda: 0.0)
    later = policy.delay_after(attempt + 1, lambda: 0.0)
    assert now <= later <= seconds(policy.max_delay)


@given(policies(), st.integers(1, 500), st.integers())
def test_jitter_only_adds_and_adds_at_most_its_share(policy, attempt, seed):
    base = policy.delay_after(attempt, lambda: 0.0)
    delay = policy.delay_after(attempt, random.Random(seed).random)
    assert base <= delay <= base * (1 + policy.jitter)


def test_the_default_policy_waits_1_2_4_seconds_and_caps_at_ten_minutes():
    policy = RetryPolicy()
    delays = [policy.delay_after(attempt, lambda: 0.0) for attempt in (1, 2, 3, 10, 11, 12)]
    assert delays == [1, 2, 4, 512, 600, 600]


@pytest.mark.parametrize("attempt", [1, 2, 1024, 1025, 100_000])
def test_an_initial_delay_of_zero_means_no_delay_at_any_attempt(attempt):
    policy = RetryPolicy(initial_delay=0, max_delay=600, jitter=0)
    assert policy.delay_after(attempt) == 0


@given(policies(), st.integers(1, 2000), st.integers(1, 20))
def test_a_failure_is_tried_max_attempts_times_the_first_included(policy, attempt, tries):
    decision = policy.decide(attempt, RuntimeError(), tries=tries)
    if attempt >= policy.max_attempts:
        assert decision == GiveUp()
    elif tries < policy.immediate_attempts:
        assert decision == TryNow()
    else:
        assert isinstance(decision, TryLater)


@given(policies(), st.integers(1, 2000))
def test_a_whole_life_makes_exactly_max_attempts_tries(policy, per_life):
    attempt, made, tries = 1, 0, 0
    while True:
        made, tries = made + 1, tries + 1
        decision = policy.decide(attempt, RuntimeError(), tries=tries, rng=lambda: 0.5)
        if isinstance(decision, GiveUp):
            break
        attempt += 1
        tries = tries if isinstance(decision, TryNow) else 0
    assert made == policy.max_attempts


def test_immediate_attempts_are_made_at_every_hand_over():
    policy = RetryPolicy(max_attempts=6, immediate_attempts=3, jitter=0)
    decisions = [
        policy.decide(attempt, RuntimeError(), tries=tries)
        for attempt, tries in ((1, 1), (2, 2), (3, 3), (4, 1), (5, 2), (6, 3))
    ]
    assert decisions == [TryNow(), TryNow(), TryLater(4), TryNow(), TryNow(), GiveUp()]


def test_never_allows_a_single_attempt():
    assert RetryPolicy.never().decide(1, RuntimeError()) == GiveUp()


def test_reject_gives_up_at_the_first_attempt():
    assert RetryPolicy().decide(1, Reject("unknown account")) == GiveUp()


def test_an_error_named_in_reject_on_gives_up_and_so_does_a_subclass_of_it():
    policy = RetryPolicy(reject_on=(LookupError, ZeroDivisionError))
    assert policy.decide(1, KeyError("x")) == GiveUp()
    assert policy.decide(1, ZeroDivisionError()) == GiveUp()
    assert isinstance(policy.decide(1, ValueError()), TryLater)


def test_reject_on_takes_a_single_type_as_well():
    assert RetryPolicy(reject_on=KeyError).reject_on == (KeyError,)  # type: ignore[arg-type]


@given(policies(), st.floats(0, 1e7))
def test_retry_after_takes_the_place_of_the_delay_and_is_cut_to_the_maximum(policy, after):
    decision = policy.decide(1, Retry("busy", after=after))
    if policy.max_attempts == 1:
        assert decision == GiveUp()
    else:
        assert decision == TryLater(min(after, seconds(policy.max_delay)))


def test_retry_without_after_waits_as_the_policy_says_and_never_tries_in_place():
    policy = RetryPolicy(immediate_attempts=5, initial_delay=3, jitter=0)
    assert policy.decide(1, Retry("busy")) == TryLater(3)


def test_retry_counts_as_an_attempt():
    assert RetryPolicy(max_attempts=3).decide(3, Retry("busy", after=1)) == GiveUp()


def test_retry_takes_a_timedelta():
    assert Retry(after=timedelta(minutes=2)).after == 120


@pytest.mark.parametrize("after", [-1, math.nan, math.inf, timedelta(seconds=-1)])
def test_retry_refuses_a_time_that_never_comes(after):
    with pytest.raises(ValueError, match="duration"):
        Retry(after=after)


@pytest.mark.parametrize("error", [Retry("busy", after=5), Reject("no")])
def test_retry_and_reject_survive_a_process_pool(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_retry_and_reject_are_plain_exceptions_outside_the_tree_of_errors():
    assert Retry.__bases__ == Reject.__bases__ == (Exception,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": 1_000_001},
        {"immediate_attempts": 0},
        {"initial_delay": -1},
        {"initial_delay": math.inf},
        {"max_delay": math.nan},
        {"multiplier": 0.5},
        {"multiplier": math.inf},
        {"jitter": -0.1},
        {"jitter": math.nan},
        {"reject_on": ("KeyError",)},
        {"max_atempts": 3},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        RetryPolicy(**wrong)


def test_a_first_delay_above_the_maximum_is_refused_with_both_in_seconds():
    with pytest.raises(ValidationError, match=r"initial_delay \(120 s\).*max_delay \(60 s\)"):
        RetryPolicy(initial_delay=timedelta(minutes=2), max_delay=60)


def test_a_policy_is_immutable_and_can_be_copied():
    policy = RetryPolicy(max_attempts=3)
    with pytest.raises(ValidationError):
        policy.max_attempts = 4
    assert copy.deepcopy(policy) == policy
    assert hash(policy) == hash(RetryPolicy(max_attempts=3))


def test_durations_are_seconds_whatever_they_were_given_as():
    policy = RetryPolicy(initial_delay=timedelta(seconds=2), max_delay=timedelta(minutes=1))
    assert (policy.initial_delay, policy.max_delay) == (2.0, 60.0)
