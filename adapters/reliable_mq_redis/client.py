"""The connections of redis-py, made with the user's options where those keep our promises."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Mapping
from typing import Any

from redis.connection import Connection, SSLConnection
from redis.exceptions import RedisError

from reliable_mq.errors import ConfigurationError
from reliable_mq_redis.location import Address, Location

SOCKET_TIMEOUT = 5.0
CONNECT_TIMEOUT = 5.0

_REPEATS = "a publish the client repeats by itself can be stored twice and out of order"
_BYTES = "bodies and headers are bytes"
_URL = "it belongs into broker_url"
_REFUSED = {
    "retry": _REPEATS,
    "retry_on_timeout": _REPEATS,
    "retry_on_error": _REPEATS,
    "decode_responses": _BYTES,
    "encoding": _BYTES,
    "encoding_errors": _BYTES,
    "protocol": "the adapter reads RESP2",
    "legacy_responses": "the adapter reads plain replies",
    "parser_class": "the adapter reads plain replies",
    "command_packer": "the adapter writes plain commands",
    "health_check_interval": "connections are checked before each use",
    "redis_connect_func": "it would replace authentication and the choice of the database",
    "host": _URL,
    "port": _URL,
    "path": _URL,
    "db": _URL,
}
_VERIFIED = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
_SENTINEL = ("sentinel_username", "sentinel_password")


class Dialer:
    """Makes connections, not opened yet, to any address. Thread-safe.

    Raises ``ConfigurationError`` for a client option that redis-py does not know or that would
    break a promise.
    """

    def __init__(self, location: Location, options: Mapping[str, object], *, tls: bool) -> None:
        self._class: type = SSLConnection if tls else Connection
        _check(options, self._class, tls=tls)
        own = {name: value for name, value in options.items() if name not in _SENTINEL}
        self._common = {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            **own,
            # redis-py's default is RESP3, whose replies have other shapes.
            "protocol": 2,
        }
        self._server = {**self._credentials(location, own), "db": location.database}
        self._sentinel = {
            "username": options.get("sentinel_username"),
            "password": options.get("sentinel_password"),
        }
        self.socket_timeout = _timeout(self._common["socket_timeout"], "socket_timeout")
        self.connect_timeout = _timeout(
            self._common["socket_connect_timeout"], "socket_connect_timeout"
        )
        self.server(location.hosts[0])

    def server(self, address: Address) -> Any:
        """Return a connection to a data node, with the user and database of the URL."""
        return self._make(address, self._server)

    def sentinel(self, address: Address) -> Any:
        """Return a connection to a sentinel, which has users of its own and no databases."""
        return self._make(address, self._sentinel)

    def _make(self, address: Address, identity: Mapping[str, object]) -> Any:
        options = {**self._common, **identity, "host": address.host, "port": address.port}
        try:
            return self._class(**options)
        except (RedisError, TypeError, ValueError) as error:
            raise ConfigurationError(f"client_options are not usable: {error}") from error

    @staticmethod
    def _credentials(location: Location, own: Mapping[str, object]) -> dict[str, object]:
        named = {"username": location.username, "password": location.password}
        given: dict[str, object] = {k: v for k, v in named.items() if v is not None}
        twice = given.keys() & own.keys()
        if twice:
            raise ConfigurationError(
                f"{' and '.join(sorted(twice))} stands in broker_url and in client_options"
            )
        return given


def _check(options: Mapping[str, object], class_: type, *, tls: bool) -> None:
    known = _parameters(class_) | set(_SENTINEL)
    for name, value in options.items():
        if name in _REFUSED:
            raise ConfigurationError(f"client option {name!r} is refused: {_REFUSED[name]}")
        if name.startswith("ssl_") and not tls:
            raise ConfigurationError(
                f"client option {name!r} is given, but the connection is not encrypted: "
                "use rediss://, or tls=1 with redis+sentinel:// and redis+cluster://"
            )
        if name in _VERIFIED and value != _VERIFIED[name]:
            raise ConfigurationError(
                f"client option {name}={value!r} is refused: an encrypted connection checks "
                "certificate and host name; name your own authority in ssl_ca_certs"
            )
        if name not in known:
            raise ConfigurationError(f"client option {name!r} is not known to redis-py")


def _parameters(class_: type) -> set[str]:
    return {
        name
        for base in inspect.getmro(class_)
        if "__init__" in vars(base)
        for name in inspect.signature(vars(base)["__init__"]).parameters
    }


def _timeout(value: object, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigurationError(
            f"client option {name}={value!r} is refused: a call to a silent server must end; "
            "give seconds"
        )
    return float(value)


def raw_socket(connection: Any) -> socket.socket | None:
    """Return the socket under an open connection, else None.

    redis-py has no public way to it, and the deadline of a publish, the abort of a connection
    and the check of an idle one are settings of the socket.
    """
    found: socket.socket | None = connection._sock
    return found
