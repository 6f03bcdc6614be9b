"""What the mutations begin with: values as they should be, and those that have hurt somebody."""

from __future__ import annotations

from reliable_mq.wire import (
    BODY,
    CLOUD_EVENT_ID,
    CONTENT_TYPE,
    MESSAGE_ID,
    MESSAGE_KEY,
    MESSAGE_TIME,
    ORIGIN_ATTEMPTS,
    ORIGIN_CAUSE,
    ORIGIN_ID,
    TRACEPARENT,
    TRUNCATED,
)

RESERVED = (
    MESSAGE_ID,
    MESSAGE_TIME,
    MESSAGE_KEY,
    CONTENT_TYPE,
    CLOUD_EVENT_ID,
    BODY,
    TRACEPARENT,
    ORIGIN_ID,
    ORIGIN_CAUSE,
    ORIGIN_ATTEMPTS,
    TRUNCATED,
)

NAMES = (*RESERVED, "Message-Id", "x-source", "", "x" * 255, "\N{SNOWMAN}" * 90, "a\0b", "a\nb")

VALUES = (
    b"",
    b"0199f2c4-5b1a-7c3e-9a10-1f2e3d4c5b6a",
    b"2026-11-21T10:20:30.123456+00:00",
    b"2026-11-21T10:20:30Z",
    b"0001-01-01T00:00:00+14:00",
    b"9999-12-31T23:59:59.999999-14:00",
    b"1970-01-01",
    b"customer-7",
    "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel".encode(),
    b"application/json",
    b"text/plain; charset=utf-8",
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"-1",
    b"id" * 200,
    b"k" * 1025,
    b"value\r\nx-forged: yes",
)

SPECIAL = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\x7f",
    b"\xff",
    b"\xfe\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x80\xae",
    b"\xef\xbb\xbf",
    b"\x80\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\xff" * 8,
    b"%00",
    b"%ff",
    b"://",
    b"@",
    b"${x}",
    b"{}",
    b"[" * 40,
    b'{"a":' * 20,
    b"9" * 60,
    b"1e999",
    b"NaN",
    b"-0",
    b"\xd9\xa3",
)

BODIES = (
    b"",
    b"null",
    b"{}",
    b'{"id": 1, "customer": "ann", "lines": [{"item": "lamp", "count": 2}]}',
    b'{"id": "1", "at": "2026-11-21T10:20:30Z", "price": "12.50", "unknown": {"a": [1, 2]}}',
    b'[1, 2.5, -3e4, true, "text \\u00fc \\ud83d\\ude00", null]',
    b'{"kind": "card", "number": "4111"}',
    b'"2026-11-21"',
    b"[[[[[[[[[[]]]]]]]]]]",
    b"\x00\xff\xfe not json\r\n",
    b"x" * 600,
)
