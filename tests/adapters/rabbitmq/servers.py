"""A node for one module, where the shared one and a node for each test do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.brokers import Server, ServerMissing


def started(request: pytest.FixtureRequest, server: Server) -> Iterator[Server]:
    """Start *server*, skipping or failing where it is missing, and stop it afterwards."""
    try:
        server.start()
    except ServerMissing as error:
        if request.config.getoption("--require-brokers"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    yield server
    server.stop()
