"""The Lua scripts, each atomic on the server and confined to the keys of one topic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files

SOURCES: dict[str, str] = {}
"""Source by SHA-1, for a server that does not know the script."""


class Script:
    """One script of the folder ``lua``, called by its SHA-1."""

    def __init__(self, *names: str) -> None:
        folder = files(__package__).joinpath("lua")
        source = "\n".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names)
        # SHA-1 is the server's own name for a script and protects nothing.
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        SOURCES[self.sha] = source

    def call(self, keys: Sequence[str], *args: str | bytes | int) -> tuple[str | bytes | int, ...]:
        """Return the command that runs the script."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


PUBLISH = Script("publish")
DECLARE_TOPIC = Script("declare_topic")
DECLARE_GROUP = Script("declare_group")
FETCH = Script("pending", "fetch")
KEEP = Script("mine", "keep")
ACK = Script("mine", "ack")
RELEASE = Script("mine", "release")
TEND = Script("tend")
FETCH_OWNED = Script("pending", "fetch_owned")
ACK_OWNED = Script("ack_owned")
RESTART = Script("restart")
HAND_OVER = Script("hand_over")
TRIM = Script("trim")
FORGET = Script("forget")
LAG = Script("lag")
