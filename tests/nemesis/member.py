"""One process of the application: ``member.py ROLE LIFE SEED ARENA``, the last one as JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

# Last, so that the library is the installed one.
sys.path.append(str(Path(__file__).parents[2]))

from tests.nemesis.application import Arena, build
from tests.nemesis.clocks import note_jumps
from tests.nemesis.producing import produce
from tests.nemesis.recording import Recorder
from tests.nemesis.replaying import replay
from tests.sweep.application import History

WORK = {"producer": produce, "replayer": replay}


def end_with_the_test() -> None:
    """Die when the other end of our input closes: the test is gone, however it went."""
    os.read(0, 1)
    os._exit(1)


def main(role: str, life: int, seed: int, arena: Arena) -> None:
    """Be that process until SIGTERM."""
    history = History(Path(arena.folder))
    threading.Thread(target=note_jumps, args=(history,), daemon=True).start()
    with build(arena) as mq:
        if role in WORK:
            stop = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            WORK[role](mq, arena, life, seed, stop)
        else:
            Recorder(mq, Path(arena.folder))
            mq.run(relay=role == "relay", consume=role == "consumer")


if __name__ == "__main__":
    threading.Thread(target=end_with_the_test, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Arena(**json.loads(sys.argv[4])))
