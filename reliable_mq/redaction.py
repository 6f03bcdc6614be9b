"""Keeping secrets out of everything that is shown: URLs, options, error texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

HIDDEN = "***"

_SENSITIVE = r"pass|pwd|secret|token|credential|private|jaas|pem|api.?key|access.?key"
_SECRET_NAME = re.compile(_SENSITIVE, re.IGNORECASE)
# The repetitions are bounded: error texts can be long, and the search must stay linear in them.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}://"
_WHOLE_URL = re.compile(_SCHEME)
_URL_IN_TEXT = re.compile(rf"{_SCHEME}[^\s'\"<>]*")
# A name may hold white space or escapes: behind a mistyped one is a password all the same.
_PARAMETER = re.compile(r"[?&;](?P<name>[^=&;?]*)=")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?")
_PLACE = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d{0,5})?")
_PUNCTUATION = ".:;,)]}"


def is_secret(name: str) -> bool:
    """Tell whether an option of this name may hold a secret."""
    return bool(_SECRET_NAME.search(name))


def redact_url(text: str) -> str:
    """Return *text* with each password in each URL of it replaced, multi-host URLs included.

    User names, hosts, ports and paths stay: without them an error names nothing to mend. A text
    that begins with a scheme is one URL to its end, whatever characters a password holds; inside
    a text a URL ends at white space, a quote or an angle bracket, and before the punctuation
    there. Where a password leaves open what is what, too much is hidden and never too little.
    """
    if _WHOLE_URL.match(text):
        return _redact_one(text)
    return _URL_IN_TEXT.sub(_redact_found, text)


def redact_hosts(hosts: str) -> str:
    """Return what stands for the hosts of a URL, cut off where no port follows a colon.

    That is a password, of somebody who has forgotten the host after it.
    """
    place = 0
    for part in re.split("[/?#]", hosts, maxsplit=1)[0].split(","):
        if not _PLACE.fullmatch(part):
            return f"{hosts[:place]}{_hide_one(part)}"
        place += len(part) + 1
    return hosts


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


def _redact_found(match: re.Match[str]) -> str:
    # With parameters it may be the end of a secret.
    url = match[0] if "?" in match[0] else match[0].rstrip(_PUNCTUATION)
    return f"{_redact_one(url)}{match[0][len(url) :]}"


def _redact_one(url: str) -> str:
    scheme, _, rest = url.partition("://")
    # Up to the last '@': a password may hold one as it is.
    userinfo, at, place = rest.rpartition("@")
    if not at:
        return f"{scheme}://{_hide_parameters(redact_hosts(rest))}"
    if any(_is_secret_parameter(match) for match in _PARAMETER.finditer(userinfo)):
        # That '@' may belong to the secret of a parameter, so what follows may as well.
        return f"{scheme}://{re.split('[:?]', userinfo, maxsplit=1)[0]}{HIDDEN}"
    return f"{scheme}://{_hide_passwords(userinfo)}@{_hide_parameters(redact_hosts(place))}"


def _is_secret_parameter(match: re.Match[str]) -> bool:
    return is_secret(unquote(match["name"]))


def _hide_parameters(text: str) -> str:
    shown, place = "", 0
    for match in _PARAMETER.finditer(text):
        if match.start() >= place and _is_secret_parameter(match):
            shown += text[place : match.end()] + HIDDEN
            end = text.find("&", match.end())
            place = len(text) if end < 0 else end
    return shown + text[place:]


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
