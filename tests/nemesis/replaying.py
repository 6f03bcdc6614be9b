"""Somebody who looks at dead letters all the time: lets them be handled again, or discards them."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

from reliable_mq import ReliableMQ
from tests.nemesis.application import Arena, Mended
from tests.sweep.application import History

SHARE = 0.4
DISCARDED = 0.2
MENDED = 0.5
EVERY = 1.0


def replay(mq: ReliableMQ, arena: Arena, life: int, seed: int, stop: threading.Event) -> None:
    """Replay some dead letters until *stop*, half of them after their handler was mended.

    Each is noted before it is tried: whether a replay of unknown outcome took place, nobody asks.
    Some are discarded instead; what is known to be discarded must not be heard of again.
    """
    rng = random.Random(f"{seed} replayer {life}")
    folder = Path(arena.folder)
    history, mended = History(folder), Mended(folder)
    while not stop.wait(EVERY):
        try:
            for letter in mq.dead_letters(arena.cell, limit=50):
                if rng.random() < SHARE:
                    number = int(json.loads(letter.message.body)["number"])
                    which = {"group": letter.group, "number": number}
                    if rng.random() < DISCARDED:
                        _discard(mq, letter.id, history, which)
                        continue
                    if rng.random() < MENDED:
                        mended.mend(letter.group, number)
                    history.note("replay", **which)
                    mq.replay(letter.id)
        except Exception as error:  # noqa: BLE001 - the database is away, or cut the connection
            history.note("replay failed", error=f"{type(error).__name__}: {error}"[:300])


def _discard(mq: ReliableMQ, id_: int, history: History, which: dict[str, Any]) -> None:
    history.note("discard", **which)
    if mq.discard(id_):
        history.note("discarded", **which)
