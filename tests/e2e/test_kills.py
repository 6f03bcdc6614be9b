"""SIGKILL at the worst moments: what each guarantee loses and repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from tests.e2e.brokers import Broker, patient
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import BEFORE_ACK, IN_HANDLER, Folder, Task
from tests.e2e.waiting import until_handed_back

pytestmark = pytest.mark.chaos

# The table of the guarantees: (calls, effects) of the message whose process died.
TABLE = {
    ("effectively-once", IN_HANDLER): (2, 1),
    ("effectively-once", BEFORE_ACK): (1, 1),
    ("at-least-once", IN_HANDLER): (2, 1),
    ("at-least-once", BEFORE_ACK): (2, 2),
    ("at-most-once", IN_HANDLER): (1, 0),
    ("at-most-once", BEFORE_ACK): (1, 1),
}


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.mark.parametrize(
    ("guarantee", "moment"), TABLE, ids=lambda value: value.replace(" ", "_").replace("the_", "")
)
def test_a_killed_process_loses_and_repeats_what_its_guarantee_says(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    engine: Engine,
    seen: Callable[[], list[str]],
    unique: str,
    broker: Broker,
    guarantee: str,
    moment: str,
) -> None:
    # Where this process stands still for a moment it must not get its own deliveries once more.
    longer = {"lease": 6} if guarantee == "at-least-once" else {}
    mq = build_mq(guarantee=guarantee, broker_url=patient(broker), consumer=longer)
    victim = start_program(E2E_GUARANTEE=guarantee, E2E_CRASH=moment)
    mq.publish_direct(unique, Task(number=1, crash=True), timeout=30)
    assert victim.wait() == -9
    mq.publish_direct(unique, Task(number=2), timeout=30)
    acknowledged = (guarantee, moment) == ("at-most-once", IN_HANDLER)
    until_handed_back(mq, unique, 1 if acknowledged else 2)
    mq.run_until_idle(60)
    calls, effects = TABLE[guarantee, moment]
    assert [note["attempt"] for note in folder.notes("call", number=1)] == [1] * calls
    assert Counter(seen()) == Counter({"1": effects, "2": 1})
    assert mq.dead_letters() == []
    assert mq.status().groups[unique, "billing"].retries == 0
