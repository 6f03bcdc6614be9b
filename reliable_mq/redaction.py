"""Keeping secrets out of everything that is shown: URLs, options, error texts."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"

_SENSITIVE = r"pass|pwd|secret|token|credential|private|jaas|pem|api.?key|access.?key"
_SECRET_NAME = re.compile(_SENSITIVE, re.IGNORECASE)
# The repetitions are bounded: error texts can be long, and the search must stay linear in them.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}://"
_WHOLE_URL = re.compile(_SCHEME)
_URL_IN_TEXT = re.compile(rf"{_SCHEME}[^\s'\"<>]*")
_SECRET_PARAMETER = re.compile(
    rf"(?P<name>[?&;][^=&;?\s]{{0,60}}?(?:{_SENSITIVE})[^=&;?\s]{{0,60}}=)[^&]*", re.IGNORECASE
)
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?")


def is_secret(name: str) -> bool:
    """Tell whether an option of this name may hold a secret."""
    return bool(_SECRET_NAME.search(name))


def redact_url(text: str) -> str:
    """Return *text* with each password in each URL of it replaced, multi-host URLs included.

    User names, hosts, ports and paths stay: without them an error names nothing to mend. A text
    that begins with a scheme is one URL to its end, whatever characters a password holds; inside
    a text a URL ends at white space, a quote or an angle bracket. Where a password leaves open
    what is what, too much is hidden and never too little.
    """
    if _WHOLE_URL.match(text):
        return _redact_one(text)
    return _URL_IN_TEXT.sub(lambda match: _redact_one(match[0]), text)


def redact_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return *options* with the value of every secret-looking name replaced, at any depth."""
    return {name: redact_option(name, value) for name, value in options.items()}


def redact_option(name: str, value: object) -> object:
    """Return *value* as it may be shown under *name*."""
    return HIDDEN if is_secret(name) else _redact_value(value)


def _redact_value(value: object) -> object:
    if isinstance(value, str):
        return redact_url(value)
    if isinstance(value, Mapping):
        return {name: redact_option(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value


def _redact_one(url: str) -> str:
    scheme, _, rest = url.partition("://")
    # Up to the last '@': a password may hold one as it is.
    userinfo, at, place = rest.rpartition("@")
    if not at:
        return f"{scheme}://{_hide_parameters(rest)}"
    if _SECRET_PARAMETER.search(userinfo):
        # That '@' may belong to the secret of a parameter, so what follows may as well.
        return f"{scheme}://{re.split('[:?]', userinfo, maxsplit=1)[0]}{HIDDEN}"
    return f"{scheme}://{_hide_passwords(userinfo)}@{_hide_parameters(place)}"


def _hide_parameters(text: str) -> str:
    return _SECRET_PARAMETER.sub(lambda match: match["name"] + HIDDEN, text)


def _hide_passwords(userinfo: str) -> str:
    # kafka://u:p@h1:1,u:p@h2 arrives as "u:p@h1:1,u:p". Hosts are shown only where each of them
    # has the same credentials: "a@b,c" may be a password as well.
    *others, last = userinfo.split(",")
    shown, lead = _hide_one(last), f"{last}@"
    if all(p.startswith(lead) and _HOST.fullmatch(p.removeprefix(lead)) for p in others):
        return "".join(f"{shown}@{p.removeprefix(lead)}," for p in others) + shown
    return _hide_one(userinfo)


def _hide_one(credentials: str) -> str:
    user, colon, _ = credentials.partition(":")
    return f"{user}:{HIDDEN}" if colon else credentials
