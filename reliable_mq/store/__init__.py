"""The SQL side: outbox, inbox, retries, dead letters and leases in the application's database."""

from __future__ import annotations

from reliable_mq.store.store import Store

__all__ = ["Store"]
