"""A private authority, and certificates that it signs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def needs_openssl() -> None:
    """Skip where certificates cannot be made."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")


def tls_settings(folder: Path, prefix: str) -> dict[str, str]:
    """The node's settings for the certificate ``server`` of the authority ``ca``."""
    return {
        f"{prefix}.cacertfile": str(folder / "ca.pem"),
        f"{prefix}.certfile": str(folder / "server.pem"),
        f"{prefix}.keyfile": str(folder / "server.key"),
    }


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    openssl(
        folder,
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", f"/CN=Test authority {name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )


def make_certificate(folder: Path, name: str, authority: str, host: str) -> None:
    (folder / "extensions").write_text(f"subjectAltName=DNS:{host}\n")
    openssl(
        folder,
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
    )
    openssl(
        folder,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-days", "2"),
        *("-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "extensions"),
        *("-out", f"{name}.pem"),
    )
