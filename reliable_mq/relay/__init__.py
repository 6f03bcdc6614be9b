"""The relay: from the outbox to the broker, in order, with nothing lost."""

from __future__ import annotations

from reliable_mq.relay.relay import LEASE_KIND, Relay, RelayCounts

__all__ = ["LEASE_KIND", "Relay", "RelayCounts"]
