"""The rights that a user of the brokers needs, by what it does, in the words of Kafka's ACLs.

READ and WRITE include DESCRIBE. A user needs the rights of all that its processes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

Rights: TypeAlias = Mapping[str, tuple[str, ...]]
"""Operations by kind of resource: ``topic``, ``group``, ``transactional-id``, ``cluster``."""

DECLARE: Final[Rights] = {"topic": ("CREATE", "DESCRIBE")}
"""To make topics. Where somebody else makes them, nothing but what follows."""

PUBLISH: Final[Rights] = {"topic": ("WRITE",)}
"""To publish, as a relay does: on dead-letter topics too."""

CONSUME: Final[Rights] = {"topic": ("READ", "DESCRIBE_CONFIGS"), "group": ("READ",)}
"""To declare groups and receive as their members. ``lag`` needs no more.

The start compares ``inbox.retention`` with the topic's settings, hence DESCRIBE_CONFIGS.
"""

TRANSACT: Final[Rights] = {"transactional-id": ("WRITE",)}
"""For ``guarantee="exactly-once"``, on the prefix ``{group}.``; with CONSUME and, on the topics of
the outputs and of the dead letters, PUBLISH."""

INSPECT: Final[Rights] = {"topic": ("DESCRIBE_CONFIGS",), "cluster": ("DESCRIBE_CONFIGS",)}
"""For ``inspect()``; without it findings say what could not be seen."""

INSPECT_INTERNAL: Final[Rights] = {"topic": ("DESCRIBE", "DESCRIBE_CONFIGS")}
"""The same, on ``__consumer_offsets`` and ``__transaction_state``."""
