"""Between ``datetime`` and the microseconds since 1970 that the tables hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(time: datetime) -> int:
    """Return *time* (aware) as microseconds since 1970 in UTC."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the aware time in UTC."""
    return _EPOCH + timedelta(0, 0, micros)  # By name it takes half as long again.


def duration_micros(seconds: float) -> int:
    """Return *seconds* in microseconds."""
    return round(seconds * 1_000_000)
