"""A broker with an encrypted listener, users and access control."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from reliable_mq_kafka.rights import Rights
from tests.brokers import Kafka
from tests.brokers.process import run

USER = "app"
PASSWORD = "s3cret/with@signs"
WRONG = "wr0ng-s3cret"


_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
_CLUSTER = "kafka-cluster"


class SecureKafka(Kafka):
    """Listens twice: ``url`` is open and may do everything; ``place`` wants TLS and a user.

    The certificate, its own authority, is ``ca`` and is valid for ``localhost`` alone.
    """

    @property
    def place(self) -> str:
        """``host:port`` of the encrypted listener."""
        return f"localhost:{self.port('secure')}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def prepare(self) -> None:
        self._make_certificate()
        super().prepare()

    def _make_certificate(self) -> None:
        key, both = self.folder / "key.pem", self.folder / "both.pem"
        command: list[str | Path] = [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", self.ca, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ]
        if run(command, log=self.log) != 0:
            raise self.failed("got no certificate")
        both.write_bytes(key.read_bytes() + self.ca.read_bytes())

    def _properties(self) -> dict[str, str]:
        found = super()._properties()
        secure = self.port("secure")
        login = "org.apache.kafka.common.security"
        found["listeners"] += f",SECURE://127.0.0.1:{secure}"
        found["advertised.listeners"] += f",SECURE://localhost:{secure}"
        found["listener.security.protocol.map"] += ",SECURE:SASL_SSL"
        return found | {
            "listener.name.secure.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.secure.plain.sasl.jaas.config": (
                f'{login}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
            "listener.name.secure.scram-sha-512.sasl.jaas.config": (
                f"{login}.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "both.pem"),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }

    # --- users ---

    @cached_property
    def boss(self) -> AdminClient:
        """A client that may do everything. Kept: what it has to answer fails when it is gone."""
        return AdminClient({"bootstrap.servers": self.bootstrap}, logger=logging.getLogger("boss"))

    def url_of(self, user: str = USER, password: str = PASSWORD, query: str = "") -> str:
        """The encrypted listener, as a user."""
        options = "&".join(filter(None, (f"ca={quote(str(self.ca))}", query)))
        return f"kafka+ssl://{user}:{quote(password, safe='')}@{self.place}?{options}"

    def set_password(self, user: str = USER, password: str = PASSWORD) -> None:
        """Make a user, or give it another password."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        credential = UserScramCredentialUpsertion(user, info, password.encode())
        for future in self.boss.alter_user_scram_credentials([credential]).values():
            future.result()

    def allow(
        self,
        rights: Rights,
        *,
        user: str = USER,
        topics: Iterable[str] = (),
        groups: Iterable[str] = (),
    ) -> None:
        """Give a user *rights*: on topics that begin so, on the groups and what is theirs."""
        names = {
            "topic": [*topics],
            "group": [*groups],
            "transactional-id": [f"{group}." for group in groups],
            "cluster": [_CLUSTER],
        }
        wanted = [
            _binding(user, kind, name, operation)
            for kind, operations in rights.items()
            for name in names[kind]
            for operation in operations
        ]
        # The client refuses an empty list.
        for future in self.boss.create_acls(wanted).values() if wanted else ():
            future.result()

    def forbid_everything(self, user: str) -> None:
        """Take all rights from a user."""
        anything: Any = None  # The client's types do not know of it.
        everything = AclBindingFilter(
            ResourceType.ANY,
            anything,
            ResourcePatternType.ANY,
            f"User:{user}",
            anything,
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        for future in self.boss.delete_acls([everything]).values():
            future.result()


def _binding(user: str, kind: str, name: str, operation: str) -> AclBinding:
    # A group is itself; topics and transactional ids are families of names.
    exactly = kind in ("group", "cluster")
    return AclBinding(
        _KINDS[kind],
        name,
        ResourcePatternType.LITERAL if exactly else ResourcePatternType.PREFIXED,
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )
