"""The rows of the table: each prepares, runs and verifies its contestants."""

from __future__ import annotations

from benchmarks.bench import Row
from benchmarks.rows.consume import ROWS as CONSUME
from benchmarks.rows.effects import ROWS as EFFECTS
from benchmarks.rows.importing import ROWS as IMPORTING
from benchmarks.rows.latency import ROWS as LATENCY
from benchmarks.rows.publish import ROWS as PUBLISH
from benchmarks.rows.recovery import ROWS as RECOVERY
from benchmarks.rows.relay import ROWS as RELAY
from benchmarks.rows.scale import ROWS as SCALE

ROWS: tuple[type[Row], ...] = (
    *RELAY,
    *CONSUME,
    *EFFECTS,
    *PUBLISH,
    *LATENCY,
    *SCALE,
    *IMPORTING,
    *RECOVERY,
)
