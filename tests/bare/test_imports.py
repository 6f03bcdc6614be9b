"""What holds for somebody who installed the core alone; also run with all extras."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

CLIENTS = {"confluent_kafka", "pika", "redis", "psycopg", "asyncpg", "pymysql", "asyncmy"}


def test_importing_the_library_imports_no_client(tmp_path: Path) -> None:
    script = "import json, sys, reliable_mq; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        # -P: the installed library, not what lies in the current folder.
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "reliable_mq" in imported
    assert not imported & CLIENTS


def test_the_core_depends_on_no_client() -> None:
    core = {
        re.match(r"[\w.-]+", line)[0].lower().replace("-", "_")  # type: ignore[index]
        for line in importlib.metadata.requires("reliable-mq") or []
        if "extra ==" not in line
    }
    assert "sqlalchemy" in core
    assert not core & CLIENTS
