"""The permissions that a user needs on its virtual host, as ``set_permissions`` has them.

Topics and groups are regular expressions here, so that one permission may be for many. What exists
is looked up without any permission.
"""

from __future__ import annotations

from dataclasses import dataclass

SUFFIX = r"\.dlq"
"""The end of the names of dead-letter topics, unless the application names them otherwise."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Three regular expressions. An empty one matches nothing, for the broker as well."""

    configure: str = ""
    write: str = ""
    read: str = ""

    def __or__(self, other: Permissions) -> Permissions:
        """Return what a user needs that does both."""
        return Permissions(
            _either(self.configure, other.configure),
            _either(self.write, other.write),
            _either(self.read, other.read),
        )


def to_declare(topic: str) -> Permissions:
    """Return the permissions to make the topic, its groups and their dead-letter topics.

    A binding is written to the queue and read from the exchange.
    """
    return Permissions(
        configure=rf"^{topic}(\..+)?$",
        write=rf"^{topic}\..+$",
        read=rf"^{topic}(\..+{SUFFIX})?$",
    )


def to_publish(topic: str) -> Permissions:
    """Return the permissions of a relay, which publishes dead letters too."""
    return Permissions(write=rf"^{topic}(\..+{SUFFIX})?$")


def to_consume(topic: str, group: str) -> Permissions:
    """Return the permissions of a consumer; ``configure`` is for ordered groups alone.

    Their members make the queue by which they count themselves.
    """
    members = r":members(\.[12])?"
    return Permissions(
        configure=rf"^{topic}\.{group}{members}$",
        read=rf"^{topic}\.{group}(\.[0-9]+|{members})?$",
    )


def _either(one: str, other: str) -> str:
    return "|".join(filter(None, (one, other)))
