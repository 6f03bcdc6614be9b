"""A broker with an encrypted listener, users and access control."""

from __future__ import annotations

from pathlib import Path

from tests.brokers import Kafka
from tests.brokers.process import run

USER = "app"
PASSWORD = "s3cret/with@signs"
WRONG = "wr0ng-s3cret"


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
