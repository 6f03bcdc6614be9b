"""``demo``: what a newcomer sees first."""

from __future__ import annotations

from tests.cli.conftest import Cli


def test_the_demo_shows_the_chain_and_leaves_nothing_behind(cli: Cli) -> None:
    temporary = cli.folder / "tmp"
    temporary.mkdir()
    cli.env["TMPDIR"] = str(temporary)
    done = cli("demo")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "messages in the outbox: 5" in said
    assert "Reject: there are no unicorns" in said
    assert "replayed: [True, False]" in said
    assert said.endswith("OK  Each once, none lost.\n")
    assert done.stderr == ""
    assert list(temporary.iterdir()) == []
    assert list(cli.folder.iterdir()) == [temporary]


def test_the_demo_is_the_same_whatever_the_environment_configures(cli: Cli) -> None:
    cli.env |= {
        "RELIABLE_MQ_BROKER_URL": "nope://nowhere",
        "RELIABLE_MQ_DATABASE_URL": "postgresql://127.0.0.1:1/nowhere",
        "RELIABLE_MQ_CLIENT_OPTIONS": '{"heartbeat": 3}',
        "RELIABLE_MQ_RELAY__LEASE": "not a number",
        "RELIABLE_MQ_RELAY__LEAS": "3",
    }
    done = cli("demo")
    assert done.returncode == 0, done.stderr
    assert "each once" in done.stdout.lower()
