"""Hypothesis without deadlines: how long an example takes says more of the machine than of us."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# On top of the profile in force, so that CI keeps its own (fixed examples).
settings.register_profile(
    "unit", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")
