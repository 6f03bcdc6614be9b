"""A private RabbitMQ node."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from .base import Server, missing

# Those in sbin switch to the user rabbitmq and to the machine's own configuration.
_PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CONTROL = _PROGRAM.with_name("rabbitmqctl")
_SETTLE_TIMEOUT = 60.0
"""Seconds. It takes up to one, and more where the machine has too much to do."""
_QUEUE_TICKS = "[{rabbit, [{quorum_tick_interval, 1000}]}].\n"
"""Milliseconds after which a queue tells the API what has changed; by itself it takes 5000."""
_METHOD_FRAME = b"\x01"
_COMPLETE_AT, _COMPLETE = slice(8, 12), b"\x00\x00\x00\x01"
"""In the header of Erlang's dets: "closed properly", also while it is open and nothing is due."""
_QUIET_SCHEDULERS = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"


class RabbitMQ(Server):
    """One RabbitMQ node with the management plugin, user guest; ``settings`` as in rabbitmq.conf.

    Durable entities, and messages in quorum queues that were confirmed, survive ``kill``.
    """

    kind = "rabbitmq"
    _has_booted = False

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port()}/"

    @property
    def api_url(self) -> str:
        """The management plugin's HTTP API."""
        return f"http://guest:guest@127.0.0.1:{self.port('management')}/api"

    def check(self) -> None:
        if not _PROGRAM.exists():
            raise missing(self.kind, str(_PROGRAM), "rabbitmq-server")

    def prepare(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("reliable-mq-tests")
        cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "advanced.config").write_text(_QUEUE_TICKS)
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port()}",
            "log.console": "true",
            "log.console.level": "warning",
            "log.file": "false",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(self.port("management")),
            **self.settings,
        }
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        (self.folder / "rabbitmq.conf").write_text("".join(lines))

    def launch(self) -> None:
        self.launch_epmd()
        self.launch_node()

    def launch_epmd(self) -> None:
        """Ours, in the foreground; the node would start a daemon that nobody ends."""
        self.spawn(["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"])

    def launch_node(self) -> None:
        """Starts the node itself."""
        self._has_booted = False
        self.spawn([_PROGRAM], env=self._environment())

    @property
    def epmd_port(self) -> int:
        """Where the node is registered, and looks for others."""
        return self.port("epmd")

    @property
    def name(self) -> str:
        """The node's name among nodes."""
        return f"rmq{self.port()}@localhost"

    def control(self, *command: str) -> str:
        """Runs ``rabbitmqctl`` on this node; returns what it printed. ServerFailed on an error."""
        if not self._has_booted:
            # It greets clients before it has read the list of its plugins and calls itself running
            # (do_run_postlaunch_phase in 3.10), and many commands are refused until then.
            self._rabbitmqctl("await_startup")
            self._has_booted = True
        return self._rabbitmqctl(*command)

    def _rabbitmqctl(self, *command: str) -> str:
        done = subprocess.run(
            [_CONTROL, "--quiet", *command],
            env={**os.environ, **self._environment()},
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            why = f"refused {' '.join(command)!r} with status {done.returncode}"
            raise self.failed(f"{why}, {done.stderr.strip()!r}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "HOME": folder,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self.port("distribution")),
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _QUIET_SCHEDULERS,
            # Makes the start script become the Erlang machine instead of staying its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def ready(self) -> bool:
        """All virtual hosts are up, and it greets an AMQP client, which it does last of all."""
        self.api("GET", "/health/checks/virtual-hosts")
        with socket.create_connection(("127.0.0.1", self.port()), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == _METHOD_FRAME

    def kill(self) -> None:
        """SIGKILL, after waiting until RabbitMQ has written down which quorum queues exist.

        It does so up to a second after declaring one (seen in 3.10). Killed before that, it
        comes back with a queue that has no leader and never gets one.
        """
        deadline = time.monotonic() + _SETTLE_TIMEOUT
        while self.running and not self._settled() and time.monotonic() < deadline:
            time.sleep(0.02)
        super().kill()

    def _settled(self) -> bool:
        for names in self.folder.glob("data/*/quorum/*/names.dets"):
            known = names.read_bytes()
            # Not in the middle of that either: it ends by saying that the table is complete.
            if known[_COMPLETE_AT] != _COMPLETE:
                return False
            queues = (config.parent.name for config in names.parent.glob("*/config"))
            if not all(queue.encode() in known for queue in queues):
                return False
        return True

    def api(self, method: str, path: str, body: object = None) -> Any:
        """One request to the management API; an error status raises ``urllib.error.HTTPError``."""
        return management(self.api_url, method, path, body)

    def create_vhost(self, name: str) -> str:
        """A new virtual host that runs on every node; returns its URL."""
        path = f"/vhosts/{quote(name, safe='')}"
        deadline = time.monotonic() + self.start_timeout
        while not self._vhost_runs(path):
            if time.monotonic() > deadline:
                raise self.failed(f"has no virtual host {name} on some node")
            time.sleep(0.1)
        self.api(
            "PUT",
            f"/permissions/{quote(name, safe='')}/guest",
            {"configure": ".*", "write": ".*", "read": ".*"},
        )
        return self.url + quote(name, safe="")

    def _vhost_runs(self, path: str) -> bool:
        """Makes it, unless it is there; tells whether it runs on every node."""
        try:
            self.api("PUT", path, {})
            states = self.api("GET", path).get("cluster_state", {})
            waiting = [node for node, state in states.items() if state != "running"]
            for node in waiting:
                self.api("POST", f"{path}/start/{quote(node, safe='')}")
        except urllib.error.HTTPError as error:
            # A node gives up after ten seconds, which right after its start may be too few.
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return False
        return not waiting

    def delete_vhost(self, name: str) -> None:
        """Removes a virtual host with all in it; its connections are closed by the server."""
        self.api("DELETE", f"/vhosts/{quote(name, safe='')}")


def management(base: str, method: str, path: str, body: object = None) -> Any:
    """One request to a management API at ``http://user:password@host:port/api``."""
    where = urlsplit(base)
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        f"{where.scheme}://{where.hostname}:{where.port}{where.path}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
    )
    login = base64.b64encode(f"{where.username}:{where.password}".encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    request.add_header("Content-Type", "application/json")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    # A cluster that has just started needs ten seconds and more for a virtual host.
    with direct.open(request, timeout=60) as response:
        answer = response.read()
    return json.loads(answer) if answer else None
