"""The command for somebody who installed the core alone."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts")) / "reliable-mq"


def test_the_demo_needs_no_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Each once, none lost." in done.stdout


def test_a_url_whose_extra_is_missing_says_what_to_install(tmp_path: Path) -> None:
    if find_spec("pika") is not None:
        pytest.skip("the extra is installed")
    env = os.environ | {"RELIABLE_MQ_BROKER_URL": "amqp://127.0.0.1:1/"}
    done = subprocess.run(
        [COMMAND, "status"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1
    expected = "error: amqp:// needs the package 'pika': pip install 'reliable-mq[rabbitmq]'\n"
    assert done.stderr == expected
