"""All seeded bugs."""

from __future__ import annotations

from tests.seeded import adapter_bugs, consumer_bugs, relay_bugs, store_bugs, trap_bugs
from tests.seeded.bug import Bug

BUGS: tuple[Bug, ...] = (
    *relay_bugs.BUGS,
    *consumer_bugs.BUGS,
    *store_bugs.BUGS,
    *adapter_bugs.BUGS,
    *trap_bugs.BUGS,
)
