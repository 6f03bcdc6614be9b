"""Durations: seconds as a number, or a ``timedelta``; seconds inside the library."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

QUIET = 30.0
"""Seconds between two log records about the same lasting trouble."""


def seconds(value: float | timedelta) -> float:
    """Return *value* in seconds.

    Raises :class:`ValueError` where it is negative, infinite or not a number.
    """
    result = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(result) or result < 0:
        raise ValueError(f"a duration must be finite and not negative, got {value!r}")
    return result


def _positive(value: float | timedelta) -> float:
    result = seconds(value)
    if result == 0:
        raise ValueError("a duration of 0 seconds is not possible here")
    return result


Duration: TypeAlias = Annotated[float | timedelta, AfterValidator(seconds)]
"""A pydantic field of seconds; read it with :func:`seconds`."""

PositiveDuration: TypeAlias = Annotated[float | timedelta, AfterValidator(_positive)]
