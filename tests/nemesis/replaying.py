"""Somebody who looks at dead letters all the time, and lets them be handled again."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

from reliable_mq import ReliableMQ
from tests.nemesis.application import Arena, Mended
from tests.sweep.application import History

SHARE = 0.4
MENDED = 0.5
EVERY = 1.0


def replay(mq: ReliableMQ, arena: Arena, life: int, seed: int, stop: threading.Event) -> None:
    """Replay some dead letters until *stop*, half of them after their handler was mended.

    Each is noted before it is tried: whether a replay of unknown outcome took place, nobody asks.
    """
    rng = random.Random(f"{seed} replayer {life}")
    folder = Path(arena.folder)
    history, mended = History(folder), Mended(folder)
    while not stop.wait(EVERY):
        try:
            for letter in mq.dead_letters(arena.cell, limit=50):
                if rng.random() < SHARE:
                    number = int(json.loads(letter.message.body)["number"])
                    if rng.random() < MENDED:
                        mended.mend(letter.group, number)
                    history.note("replay", group=letter.group, number=number)
                    mq.replay(letter.id)
        except Exception as error:  # noqa: BLE001 - the database is away, or cut the connection
            history.note("replay failed", error=f"{type(error).__name__}: {error}"[:300])
