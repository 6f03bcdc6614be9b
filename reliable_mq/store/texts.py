"""Error texts made fit for any database, log and header before anything is written."""

from __future__ import annotations

import re

from reliable_mq.redaction import redact_url

_UNSTORABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def clean(text: str, max_bytes: int) -> str:
    """Return *text* without NUL, other controls and lone surrogates, cut to *max_bytes* of UTF-8.

    A database that refuses a text would refuse the dead letter that carries it.
    """
    cleaned = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:max_bytes])
    encoded = cleaned.encode()
    if len(encoded) <= max_bytes:
        return cleaned
    return encoded[: max_bytes - 3].decode(errors="ignore") + "..."


def cause_of(error: BaseException, max_bytes: int) -> str:
    """Return class and text of *error*: what a person needs, without locals or traceback."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an application's __str__ may raise anything
        text = f"<no text: {type(broken).__name__}>"
    # The SQL and its parameters, which SQLAlchemy appends, hold the application's data.
    text = text.split("\n[SQL:", 1)[0].split("\n[parameters:", 1)[0]
    name = type(error).__qualname__
    return clean(redact_url(f"{name}: {text}" if text else name), max_bytes)
