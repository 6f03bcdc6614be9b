"""What this machine cannot do."""

from __future__ import annotations


class UnableError(Exception):
    """A fault that cannot be dealt here; the text says why."""
