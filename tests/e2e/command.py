"""The command line, run as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.e2e.brokers import Broker


def reliable_mq(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``reliable-mq`` with its settings from the environment."""
    return subprocess.run(
        [sys.executable, "-m", "reliable_mq", *arguments],
        env={
            **os.environ,
            "RELIABLE_MQ_BROKER_URL": broker.url,
            "RELIABLE_MQ_DATABASE_URL": broker.database_url,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def as_json(broker: Broker, *arguments: str) -> Any:
    """Run it with ``--json`` and return what it prints."""
    done = reliable_mq(broker, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
