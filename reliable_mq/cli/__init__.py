"""The command ``reliable-mq``: run the parts, look at them, mend what failed."""

from __future__ import annotations


def main() -> None:
    """Run the command line. Exit codes: 0 fine, 1 findings or failure, 2 usage."""
    # Only here: importing the library must not cost what a terminal program needs.
    from reliable_mq.cli.commands import app

    app(prog_name="reliable-mq")
