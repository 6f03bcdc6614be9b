"""Durations are seconds inside, whatever they were outside."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from reliable_mq.durations import Duration, PositiveDuration, seconds


@given(st.floats(0, 1e9))
def test_a_number_is_seconds(value):
    assert seconds(value) == value


@given(st.timedeltas(timedelta(0), timedelta(days=9999)))
def test_a_timedelta_becomes_its_seconds(value):
    assert seconds(value) == value.total_seconds()


@pytest.mark.parametrize("value", [-1, -0.001, math.inf, -math.inf, math.nan, timedelta(-1)])
def test_a_duration_that_is_negative_or_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="finite and not negative"):
        seconds(value)


def test_a_field_accepts_numbers_timedeltas_and_iso_8601_and_gives_seconds():
    field = TypeAdapter(Duration)
    assert field.validate_python(1) == 1.0
    assert field.validate_python(timedelta(minutes=1)) == 60.0
    assert field.validate_python("90") == 90.0
    assert field.validate_python("PT2M") == 120.0


def test_zero_is_a_duration_but_not_a_positive_one():
    assert TypeAdapter(Duration).validate_python(0) == 0
    with pytest.raises(ValidationError, match="0 seconds"):
        TypeAdapter(PositiveDuration).validate_python(0)
