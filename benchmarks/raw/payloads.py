"""What a raw consumer's loop hands to its handler, which does nothing but tell it was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def _a_dict(order: dict[str, Any]) -> object:
    return order["n"]


HANDLED: dict[str, Callable[[bytes], object]] = {
    "dict": lambda body: _a_dict(json.loads(body)),
    "bytes": lambda body: body[6:15],  # where the number is
}
"""By the kind of payload: from a body to what the handler got to know."""
