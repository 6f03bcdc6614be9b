"""Users of a node who may do less than its administrator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from reliable_mq_rabbitmq.rights import Permissions
from tests.brokers import RabbitMQ

PASSWORD = "canary-of-a-password"


@contextmanager
def user(node: RabbitMQ, vhost: str, permissions: Permissions, name: str = "user") -> Iterator[str]:
    """A user with these permissions on a virtual host alone; gives the URL."""
    name = f"{name}-{vhost}"
    place = f"/permissions/{quote(vhost, safe='')}/{name}"
    node.api("PUT", f"/users/{name}", {"password": PASSWORD, "tags": ""})
    node.api("PUT", place, permissions_of(permissions))
    yield f"amqp://{name}:{PASSWORD}@127.0.0.1:{node.port()}/{quote(vhost, safe='')}"
    node.api("DELETE", f"/users/{name}")


def permissions_of(permissions: Permissions) -> dict[str, str]:
    """What the management API takes."""
    return {
        "configure": permissions.configure,
        "write": permissions.write,
        "read": permissions.read,
    }
