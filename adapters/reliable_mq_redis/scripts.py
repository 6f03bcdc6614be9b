"""The Lua scripts, each atomic on the server and confined to the keys of one topic.

A server that is full (``maxmemory``, ``noeviction``) refuses a write that may take memory where it
is the first one of a script. After a first write that takes none it lets the script finish. So it
chooses by the first write what a full server refuses:

- ``publish`` begins with a write that takes memory: no message is stored, and nothing by halves.
- Every other script begins, where it writes, with one that takes none, if need be of something
  that is not there. Consumers alone can make room, by acknowledging and trimming; without their
  leases they do not even read. What these scripts add is bounded by the numbers of topics, groups,
  partitions and members, not by traffic.

Declaring ``allow-oom`` would say the same, but only to Redis 7 or later; 6.2 would not run it.
"""

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
TURN = Script("turn")
TRIM = Script("trim")
FORGET = Script("forget")
LAG = Script("lag")
