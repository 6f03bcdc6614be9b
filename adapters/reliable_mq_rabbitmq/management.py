"""Asking the management plugin's HTTP API, which shows what AMQP does not."""

from __future__ import annotations

import json
import socket
import ssl
from base64 import b64encode
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote

from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.options import Options

OK = 200
UNAUTHORIZED = 401
NOT_FOUND = 404
SERVICE_UNAVAILABLE = 503


class Unavailable(Exception):
    """No host of the API answered, or its answer was not understood. The text holds no secret."""


class Denied(Unavailable):
    """The API refused the user, for this question at least."""


class Management:
    """The API of the cluster behind one broker URL, for one thread. Asks only, changes nothing.

    Each question is a request of its own to the first host that answers, within the connection
    time-out of the options. Neither proxies nor redirections are followed, and ``https`` checks
    certificate and host name.
    """

    def __init__(self, options: Options) -> None:
        if options.management is None:
            raise ValueError("the options name no management API")
        self._place = options.management
        self._options = options
        login = f"{options.management_user or options.user}:"
        login += options.management_password or options.password
        self._headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        self._vhost = _quoted(options.virtual_host)

    def get(self, *path: str, query: str = "") -> Any:
        """Return the answer, None where there is no such thing; ``{vhost}`` is filled in."""
        status, body = self.ask(*path, query=query)
        if status == NOT_FOUND:
            return None
        if status != OK:
            raise Unavailable(f"it answered {status} to {'/'.join(path)}")
        return body

    def ask(self, *path: str, query: str = "") -> tuple[int, Any]:
        """Return status and answer. ``Denied`` or ``Unavailable`` where there is none."""
        parts = [self._vhost if part == "{vhost}" else _quoted(part) for part in path]
        target = f"{self._place.path}/api/{'/'.join(parts)}{query and '?' + query}"
        failures = []
        for host, port in self._place.hosts:
            try:
                return self._ask(host, port, target)
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{host}:{port}: {errors.describe(error)}")
        raise Unavailable("; ".join(failures))

    def _ask(self, host: str, port: int, target: str) -> tuple[int, Any]:
        connection = self._connection(host, port)
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status == UNAUTHORIZED:
            raise Denied(f"it refused user {self._user!r}")
        known = response.status in (OK, NOT_FOUND, SERVICE_UNAVAILABLE)
        return response.status, json.loads(body) if known else None

    @property
    def _user(self) -> str:
        return self._options.management_user or self._options.user

    def _connection(self, host: str, port: int) -> HTTPConnection:
        timeout = self._options.connection_timeout
        if not self._place.tls:
            return HTTPConnection(host, port, timeout=timeout)
        name = self._options.server_hostname or host
        return _Https(host, port, timeout, self._options.tls_context(), name)


class _Https(HTTPSConnection):
    """A connection whose certificate may be for another name than the host's."""

    def __init__(
        self, host: str, port: int, timeout: float, context: ssl.SSLContext, name: str
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls = context
        self._name = name

    def connect(self) -> None:
        """Connect, and compare the certificate with the expected name."""
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)


def _quoted(part: str) -> str:
    return quote(part, safe="")
