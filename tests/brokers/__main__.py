"""``python -m tests.brokers up kafka redis ...``: servers to work with, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import ExitStack

from . import CLUSTERS, KINDS, ServerFailed, ServerMissing, server, variable


def main(arguments: list[str] | None = None) -> int:
    """Starts the servers, prints where they are, waits for SIGINT or SIGTERM, removes them."""
    options = _parser().parse_args(arguments)
    # Without handlers SIGTERM would end us before the servers are removed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        with ExitStack() as stack:
            started = {kind: stack.enter_context(server(kind)) for kind in options.kinds}
            urls = {variable(kind): one.url for kind, one in started.items()}
            _show(urls, as_json=options.json)
            while True:
                signal.pause()
    except (ServerMissing, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.brokers", description=__doc__)
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="start servers in the foreground")
    up.add_argument(
        "kinds", nargs="*", choices=[*KINDS, *CLUSTERS], default=[*KINDS], metavar="KIND"
    )
    up.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)


def _show(urls: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(urls), flush=True)
        return
    for name, url in urls.items():
        print(f"export {name}={url}")
    print("# ready; Ctrl-C ends them and removes their data", flush=True)


if __name__ == "__main__":
    sys.exit(main())
