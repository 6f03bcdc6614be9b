"""What a message carries, as JSON for machines and as text for people."""

from __future__ import annotations

import base64
import codecs
from typing import Any

from reliable_mq.cli.output import visible
from reliable_mq.wire import RawHeaders

_SHOWN = 10_000
"""Bytes of a body that a person gets to see."""


def headers_json(headers: RawHeaders) -> dict[str, Any]:
    """Return header pairs as an object, of duplicate names the last."""
    return {name: text_or_base64(value) for name, value in headers}


def text_or_base64(value: bytes) -> Any:
    """Return bytes as text, and as ``{"base64": ...}`` where they are none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": to_base64(value)}


def to_base64(value: bytes) -> str:
    """Return bytes as JSON can hold them."""
    return base64.b64encode(value).decode()


def shown_body(body: bytes) -> str:
    """Return the beginning of a body as harmless text, or as base64 where it is none."""
    begin = body[:_SHOWN]
    more = "" if begin == body else f"\n... ({len(body)} bytes in all; --json shows them)"
    try:
        # The cut may go through a character, which then is left out.
        text = codecs.getincrementaldecoder("utf-8")().decode(begin, final=begin == body)
    except UnicodeDecodeError:
        return f"{len(body)} bytes, base64: {to_base64(begin)}{more}"
    return visible(text, keep="\n\t") + more
