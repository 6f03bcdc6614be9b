"""Processes to be killed, forked from one that has everything imported: 50 ms instead of a second.

Run as a script it is that server: each line of its input is an order, each line of its output an
answer. One process at a time.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
from typing import Any, NoReturn

from reliable_mq import ReliableMQ
from reliable_mq.crashpoints import arm
from reliable_mq.operations import discard, replay
from reliable_mq.store.outbox.held import OutboxDesk

try:
    from tests.sweep.application import UNCOMMITTED, Job, Place, build, write
except ModuleNotFoundError:  # run as a script
    from application import (  # type: ignore[import-not-found,no-redef]
        UNCOMMITTED,
        Job,
        Place,
        build,
        write,
    )


def _run(mq: ReliableMQ, place: Place) -> None:
    mq.run()


def _publish(mq: ReliableMQ, place: Place) -> None:
    with mq.transaction() as session:
        write(mq, session, place, [Job(number=number) for number in UNCOMMITTED])


def _replay(mq: ReliableMQ, place: Place) -> None:
    replay(mq.store, mq.dead_letters(place.cell)[0].id)


def _discard(mq: ReliableMQ, place: Place) -> None:
    discard(mq.store, mq.dead_letters(place.cell)[0].id)


def _release(mq: ReliableMQ, place: Place) -> None:
    desk = OutboxDesk(mq.store, discard_after=0.0)
    for entry in desk.entries(held=True):
        desk.retry(entry.id)


ROLES = {
    "run": _run,
    "publish": _publish,
    "replay": _replay,
    "discard": _discard,
    "release": _release,
}

ON_DEMAND = (
    "confluent_kafka",
    "pika",
    "psycopg",
    "pymysql",
    "redis",
    "reliable_mq_kafka",
    "reliable_mq_rabbitmq",
    "reliable_mq_redis",
    "reliable_mq_sql",
)


def _live(order: dict[str, Any]) -> NoReturn:
    """Be the process that *order* describes, and never return."""
    code = 70
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
        place = Place(**order["place"])
        mq = build(place)
        arm(order["crash"])
        ROLES[order["role"]](mq, place)
        code = 0
    except BaseException:  # noqa: BLE001 - it is in the log, and the process ends
        traceback.print_exc()
    finally:
        os._exit(code)


def serve() -> None:
    """Fork a process for each order; answer with its id, and with its status at its end."""
    # What is asked for by URL is imported before the fork, not after each.
    for name in ON_DEMAND:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _live(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
