"""Who a member is for its group: the brokers refuse the offsets of one that was replaced."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from reliable_mq.errors import ConfigurationError

_MAGIC = b"CGMDv2:"


@dataclass(frozen=True, slots=True)
class Membership:
    """A member of a group in one generation, as the client's group metadata tells it."""

    metadata: bytes
    generation: int
    member: str

    @property
    def is_valid(self) -> bool:
        """Tell whether the brokers check it: offsets from nobody in particular they just take."""
        return self.generation >= 0 and bool(self.member)


def membership(metadata: bytes) -> Membership:
    """Read what ``Consumer.consumer_group_metadata`` has returned.

    The client offers it as bytes only. A form that is not known is an error: without a look at
    it nobody could tell a member from a stranger, whose offsets are not fenced.
    """
    at = len(_MAGIC)
    # Magic, generation, and the names of group and member, each with a zero at its end.
    names = metadata[at + 4 :].split(b"\0", 2)
    if not metadata.startswith(_MAGIC) or len(names) < 3:
        raise ConfigurationError(
            "this version of confluent-kafka has group metadata of an unknown form: "
            "guarantee 'exactly-once' needs another one"
        )
    generation = int.from_bytes(metadata[at : at + 4], sys.byteorder, signed=True)
    return Membership(metadata, generation, names[1].decode("utf-8", "replace"))
