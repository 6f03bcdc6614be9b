"""The application, the processes and the brokers of the end-to-end tests."""

from tests.e2e.conftest import (
    broker,
    build_mq,
    database_url,
    engine,
    folder,
    kind,
    make_mq,
    seen,
    start_program,
)

__all__ = [
    "broker",
    "build_mq",
    "database_url",
    "engine",
    "folder",
    "kind",
    "make_mq",
    "seen",
    "start_program",
]
