"""What a broker URL and the client options say, checked and without any I/O."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import pika

from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import redact_url

PLAIN_PORT = 5672
TLS_PORT = 5671

MANAGEMENT_PORT = 15672
MANAGEMENT_TLS_PORT = 15671

_TLS_OPTIONS = frozenset({"cafile", "certfile", "keyfile", "server_hostname"})
_CLIENT_OPTIONS = frozenset(
    {"channel_max", "client_properties", "frame_max", "locale", "tcp_options"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the management API is: hosts of the cluster, any of which answers for all."""

    hosts: tuple[tuple[str, int], ...]
    path: str = ""
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where and how to connect. Times in seconds; the password stays out of the repr."""

    hosts: tuple[tuple[str, int], ...]
    virtual_host: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: bool = False
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    server_hostname: str | None = None
    heartbeat: int = 10
    connection_timeout: float = 5.0
    blocked_connection_timeout: float = 30.0
    operation_timeout: float = 30.0
    confirm_window: int = 1000
    management: Place | None = None
    management_user: str | None = None
    management_password: str | None = field(default=None, repr=False)
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def parameters(self, host: str, port: int, name: str) -> pika.ConnectionParameters:
        """Return pika's parameters for one host; *name* is what the broker shows of us.

        Raises :class:`ConfigurationError` for certificates that cannot be read.
        """
        client = dict(self.client)
        shown = {"connection_name": name, **client.pop("client_properties", {})}
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=self.virtual_host,
            credentials=pika.PlainCredentials(self.user, self.password),
            ssl_options=self._ssl_options(host),
            heartbeat=self.heartbeat,
            blocked_connection_timeout=self.blocked_connection_timeout,
            socket_timeout=self.connection_timeout,
            stack_timeout=self.connection_timeout,
            connection_attempts=1,
            retry_delay=0,
            client_properties=shown,
            **client,
        )

    def _ssl_options(self, host: str) -> pika.SSLOptions | None:
        if not self.tls:
            return None
        return pika.SSLOptions(self.tls_context(), self.server_hostname or host)

    def tls_context(self) -> ssl.SSLContext:
        """Return a context that requires a certificate and compares the host name.

        Raises :class:`ConfigurationError` for certificates that cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            if self.certfile is not None:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.cafile, self.certfile, self.keyfile)))
            raise ConfigurationError(
                f"the certificates or the key of broker_url ({files}) cannot be read: {error}"
            ) from error
        return context


def parse(url: str, client_options: Mapping[str, object]) -> Options:
    """Return the options of *url*; raise :class:`ConfigurationError` for what is not understood."""
    parts = _split(url)
    userinfo, _, netloc = parts.netloc.rpartition("@")
    # An '@' after the host is the end of a password with an unencoded '/' or '?' in it.
    if parts.fragment or "/" in parts.path[1:] or "@" in userinfo + parts.path + parts.query:
        raise _not_understood(url)
    tls = parts.scheme.lower() == "amqps"
    user, _, password = userinfo.partition(":")
    query = _Query(parts.query, url)
    management = query.management(encrypted=tls)
    place = management.get("management")
    options = Options(
        hosts=tuple(
            _host(part, TLS_PORT if tls else PLAIN_PORT, url) for part in netloc.split(",")
        ),
        virtual_host=unquote(parts.path[1:]) or "/",
        user=unquote(user) if userinfo else "guest",
        password=unquote(password) if userinfo else "guest",
        tls=tls,
        client=_client_options(client_options),
        **management,
        **query.tls(allowed=tls or (place is not None and place.tls)),
        **query.numbers(),
    )
    query.refuse_the_rest()
    _check_with_pika(options)
    return options


def _not_understood(url: str) -> ConfigurationError:
    # Nothing of the parser's own words: they may quote a password with an unencoded slash in it.
    return ConfigurationError(
        f"broker_url {redact_url(url)!r} is not understood: write "
        "amqp://user:password@host1:5672,host2/vhost with the user once, and special characters "
        "of user, password and virtual host percent-encoded"
    )


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise _not_understood(url) from None


def _host(text: str, default_port: int, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _not_understood(url) from None
    if not host:
        raise ConfigurationError(
            f"broker_url {redact_url(url)!r} names no host; write amqp://localhost:5672"
        )
    return host, port or default_port


def _place(url: str) -> Place:
    """Return where the management API is. The texts of errors do not show *url*, which may hold
    a password that nobody recognises as one."""
    wrong = ConfigurationError(
        "broker_url: the option management is not understood: write "
        "management=http://host1:15672,host2 or https://, without a user; that one is in "
        "management_user and management_password, where it is not the one of broker_url"
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise wrong
    if "@" in parts.netloc or not all(parts.netloc.split(",")):
        raise wrong
    tls = parts.scheme == "https"
    port = MANAGEMENT_TLS_PORT if tls else MANAGEMENT_PORT
    try:
        hosts = tuple(_host(part, port, "") for part in parts.netloc.split(","))
    except ConfigurationError:
        raise wrong from None
    return Place(hosts=hosts, path=parts.path.rstrip("/"), tls=tls)


def is_loopback(host: str) -> bool:
    """Tell whether *host* is this machine, so that nobody can listen on the way."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _Query:
    """The query of the URL, from which each option is taken once."""

    def __init__(self, text: str, url: str) -> None:
        self._url = redact_url(url)
        self._left: dict[str, str] = {}
        for name, value in parse_qsl(text, keep_blank_values=True):
            if name in self._left:
                raise ConfigurationError(f"broker_url {self._url!r} has the option {name!r} twice")
            self._left[name] = value

    def tls(self, *, allowed: bool) -> dict[str, Any]:
        found = {name: self._left.pop(name) for name in _TLS_OPTIONS & self._left.keys()}
        if found and not allowed:
            raise ConfigurationError(
                f"broker_url {self._url!r}: {', '.join(sorted(found))} needs amqps://, or a "
                "management API by https://"
            )
        if "keyfile" in found and "certfile" not in found:
            raise ConfigurationError(f"broker_url {self._url!r}: keyfile needs certfile")
        return found

    def management(self, *, encrypted: bool) -> dict[str, Any]:
        names = ("management", "management_user", "management_password")
        found: dict[str, Any] = {n: self._left.pop(n) for n in names if self._left.get(n)}
        if not found:
            return found
        if "management" not in found or len(found) == 2:
            raise ConfigurationError(
                "broker_url: management_user and management_password go together, with management"
            )
        found["management"] = place = _place(found["management"])
        far = [host for host, _ in place.hosts if not is_loopback(host)]
        if encrypted and far and not place.tls:
            raise ConfigurationError(
                f"broker_url: management=http:// would send the password to {', '.join(far)} as "
                "plain text, though the broker is reached by amqps://; use https://"
            )
        return found

    def numbers(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._take(found, "heartbeat", int, 1, 3600)
        self._take(found, "connection_timeout", float, 0.1, 3600)
        self._take(found, "blocked_connection_timeout", float, 1, 86400)
        self._take(found, "operation_timeout", float, 0.1, 3600)
        self._take(found, "confirm_window", int, 1, 65535)
        return found

    def _take(
        self, found: dict[str, Any], name: str, kind: type[int | float], low: float, high: float
    ) -> None:
        if name not in self._left:
            return
        text = self._left.pop(name)
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not low <= value <= high:
            raise ConfigurationError(
                f"broker_url {self._url!r}: {name}={text} must be "
                f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
                + _WHY.get(name, "")
            )
        found[name] = value

    def refuse_the_rest(self) -> None:
        if self._left:
            raise ConfigurationError(
                f"broker_url {self._url!r} has unknown options: {', '.join(sorted(self._left))}"
            )


_WHY = {
    "heartbeat": " (seconds; without heartbeats a process that hangs would keep its messages)",
    "blocked_connection_timeout": " (seconds)",
    "connection_timeout": " (seconds)",
    "operation_timeout": " (seconds)",
}


def _client_options(given: Mapping[str, object]) -> Mapping[str, Any]:
    unknown = sorted(given.keys() - _CLIENT_OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"client_options {', '.join(map(repr, unknown))} cannot be given to RabbitMQ's client; "
            f"possible are {', '.join(sorted(_CLIENT_OPTIONS))} and the options of broker_url"
        )
    properties = given.get("client_properties", {})
    if not isinstance(properties, Mapping) or "capabilities" in properties:
        raise ConfigurationError(
            "client_options['client_properties'] must be a mapping without 'capabilities': "
            "confirms and cancel notifications depend on them"
        )
    return dict(given)


def _check_with_pika(options: Options) -> None:
    """Let pika judge the values that it alone knows, without reading a certificate."""
    try:
        pika.ConnectionParameters(**dict(options.client))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"client_options for RabbitMQ's client: {error}") from error
