"""Keeping secrets out of everything that is shown: URLs, options, error texts."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"

_SECRET_NAME = re.compile(r"pass|secret|token|credential|private|sasl\.jaas|api.?key", re.IGNORECASE)
# Up to the last '@', whatever a password holds: hiding too much is harmless, too little is not.
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<info>[^\s'\"<>]*)@")
_QUERY = re.compile(r"(?P<lead>[?&;])(?P<name>[^=&;\s]+)=(?P<value>[^&;\s#]*)")


def is_secret(name: str) -> bool:
    """Tell whether an option of this name may hold a secret."""
    return bool(_SECRET_NAME.search(name))


def redact_url(text: str) -> str:
    """Return *text* with each password in each URL of it replaced, multi-host URLs included.

    User names, hosts, ports and paths stay: without them an error names nothing to mend.
    """
    shown = _USERINFO.sub(lambda m: m["scheme"] + _hide_passwords(m["info"]) + "@", text)
    return _QUERY.sub(_hide_query, shown)


def redact_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return *options* with the value of every secret-looking name replaced."""
    return {
        name: HIDDEN
        if is_secret(name)
        else redact_options(value)
        if isinstance(value, Mapping)
        else redact_url(value)
        if isinstance(value, str)
        else value
        for name, value in options.items()
    }


def _hide_passwords(userinfo: str) -> str:
    # kafka://u:p@h1:1,u:p@h2 arrives as "u:p@h1:1,u:p": each part but the last ends in a host.
    *others, last = userinfo.split(",")
    if all("@" in part for part in others):
        hosts = [part.rpartition("@") for part in others]
        return ",".join([f"{_hide_one(user)}@{host}" for user, _, host in hosts] + [_hide_one(last)])
    return _hide_one(userinfo)


def _hide_one(credentials: str) -> str:
    user, colon, _ = credentials.partition(":")
    return f"{user}:{HIDDEN}" if colon else credentials


def _hide_query(match: re.Match[str]) -> str:
    value = HIDDEN if is_secret(match["name"]) else match["value"]
    return f"{match['lead']}{match['name']}={value}"
