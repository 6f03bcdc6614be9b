"""When a failed attempt is tried again: a pure function of attempt number and error.

Nothing here sleeps, publishes or reads a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reliable_mq.durations import Duration, seconds


class Retry(Exception):
    """Raised by a handler: try this message again later.

    Counts as an attempt. *after*, seconds or ``timedelta``, takes the place of the policy's
    delay, cut to its ``max_delay``; without it the policy decides.
    """

    def __init__(self, reason: str = "", after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = None if after is None else seconds(after)


class Reject(Exception):
    """Raised by a handler: this message can never succeed. It is a dead letter now."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TryNow:
    """Run the handler again in place."""


@dataclass(frozen=True, slots=True)
class TryLater:
    """Run the handler again *delay* seconds from now, from the store."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Make it a dead letter."""


Decision: TypeAlias = TryNow | TryLater | GiveUp


class RetryPolicy(BaseModel):
    """How often, and after which delays, a failed message is tried again.

    *max_attempts* counts every try, the first included. *immediate_attempts* tries are made per
    hand-over, one right after the other, before the message waits. The delay before attempt
    ``k + 1`` is ``min(max_delay, initial_delay * multiplier ** (k - 1))`` seconds, times
    ``1 + U(0, jitter)``. An error of a type in *reject_on* is a dead letter at once. Durations
    are seconds or ``timedelta``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_attempts: int = Field(default=8, ge=1, le=1_000_000)
    immediate_attempts: int = Field(default=1, ge=1, le=1000)
    initial_delay: Duration = 1.0
    multiplier: float = Field(default=2.0, ge=1, le=1000, allow_inf_nan=False)
    max_delay: Duration = 600.0
    jitter: float = Field(default=0.2, ge=0, le=10, allow_inf_nan=False)
    reject_on: tuple[type[Exception], ...] = ()

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            if isinstance(values.get("reject_on"), type):
                values["reject_on"] = (values["reject_on"],)
            super().__init__(**values)

    @model_validator(mode="after")
    def _delays_fit(self) -> Self:
        first, longest = seconds(self.initial_delay), seconds(self.max_delay)
        if first > longest:
            raise ValueError(
                f"initial_delay ({first:g} s) is longer than max_delay ({longest:g} s)"
            )
        return self

    @classmethod
    def never(cls) -> Self:
        """Return the policy of a single attempt."""
        return cls(max_attempts=1)

    def delay_after(self, attempt: int, rng: Callable[[], float] = random.random) -> float:
        """Return the seconds between attempt number *attempt* and the next one."""
        return self._base_delay(attempt) * (1 + self.jitter * rng())

    def decide(
        self,
        attempt: int,
        error: BaseException,
        *,
        tries: int = 1,
        rng: Callable[[], float] = random.random,
    ) -> Decision:
        """Return what follows when attempt number *attempt* ended in *error*.

        *tries* is how many were made in this hand-over, this one included.
        """
        if isinstance(error, (Reject, *self.reject_on)):
            return GiveUp()
        if attempt >= self.max_attempts:
            return GiveUp()
        if isinstance(error, Retry):
            delay = self.delay_after(attempt, rng)
            return TryLater(delay if error.after is None else min(error.after, self._cap()))
        if tries < self.immediate_attempts:
            return TryNow()
        return TryLater(self.delay_after(attempt, rng))

    def _cap(self) -> float:
        return seconds(self.max_delay)

    def _base_delay(self, attempt: int) -> float:
        first = seconds(self.initial_delay)
        try:
            grown = first * self.multiplier ** (attempt - 1)
        except OverflowError:
            return self._cap() if first else 0.0
        return min(self._cap(), grown)
