"""What the nemesis is made of does what it says: else a run without violations proves nothing."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.nemesis.exchange import ORIGIN, Exchange, Record
from tests.nemesis.producing import NUMBERS, Plan
from tests.nemesis.proxy import Proxy, Trouble
from tests.nemesis.soak import EVERY, MAX_HANDLES, MAX_MIB, Life, Sample
from tests.nemesis.stories import told
from tests.nemesis.truth import Findings
from tests.sweep.application import History, Job
from tests.sweep.invariants import Truth

# --- links --------------------------------------------------------------------------------------


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    while data := connection.recv(65536):
                        self.seen += data
                        connection.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    proxy = Proxy(random.Random(1))
    proxy.start(echo.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as client:
        assert ask(client, b"hello") == b"hello"
        yield client


def ask(client: socket.socket, data: bytes) -> bytes:
    """Return the answer, "" where the connection ends instead."""
    found = b""
    try:
        client.sendall(data)
        while len(found) < len(data) and (more := client.recv(65536)):
            found += more
    except ConnectionError:
        return b""
    return found


def test_a_slow_link_is_late_in_both_directions(proxy: Proxy, client: socket.socket) -> None:
    proxy.begin(Trouble.LATENCY, share=1.0, delay=0.2)
    began = time.monotonic()
    assert ask(client, b"late") == b"late"
    assert time.monotonic() - began >= 0.4


def test_what_goes_into_a_black_hole_comes_out_in_the_end(
    proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    proxy.begin(Trouble.BLACKHOLE, share=1.0)
    client.sendall(b"lost?")
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.recv(10)
    assert echo.seen == b"hello"
    client.settimeout(60)
    proxy.end()
    assert client.recv(10) == b"lost?"


def test_a_reset_link_is_gone_and_so_are_new_ones(
    proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    proxy.begin(Trouble.RESET, share=1.0)
    assert ask(client, b"open") == b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as new:
        assert ask(new, b"new") == b""
    assert echo.seen == b"hello"


def test_a_sliced_link_changes_nothing(proxy: Proxy, client: socket.socket) -> None:
    proxy.begin(Trouble.SLICES, share=1.0)
    data = random.Random(2).randbytes(100_000)
    assert ask(client, data) == data
    assert proxy.hits


def test_of_a_lost_reply_the_request_has_arrived(
    proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    proxy.begin(Trouble.LOST_REPLY, share=1.0)
    assert ask(client, b"request") == b""
    assert echo.seen == b"hellorequest"


def test_of_a_lost_commit_everything_before_is_answered(
    proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    proxy.begin(Trouble.LOST_COMMIT, share=1.0)
    assert ask(client, b"INSERT") == b"INSERT"
    assert ask(client, b"commit") == b""
    assert echo.seen == b"helloINSERTcommit"


def test_who_has_luck_notices_nothing(proxy: Proxy, client: socket.socket) -> None:
    proxy.begin(Trouble.RESET, share=0.0)
    assert ask(client, b"fine") == b"fine"
    assert proxy.hits == 0


# --- growth -------------------------------------------------------------------------------------


def life(mib: float, handles: float) -> Life:
    """Ten minutes of a process that grows by so much an hour, and is noisy."""
    rng = random.Random(3)
    found = Life("consumer", 0)
    for number in range(300):
        hours = number * EVERY / 3600
        noise = rng.uniform(-5, 5)
        found.samples.append(
            Sample(number * EVERY, 90 + mib * hours + noise, 30 + handles * hours + noise)
        )
    return found


def test_a_process_that_keeps_its_size_is_fine() -> None:
    assert life(0, 0).violations() == []


@pytest.mark.parametrize(("mib", "handles"), [(10 * MAX_MIB, 0), (0, 10 * MAX_HANDLES)])
def test_a_process_that_grows_is_found(mib: float, handles: float) -> None:
    (line,) = life(mib, handles).violations()
    assert line.startswith("I9 consumer")


# --- plan, checks, stories ----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_jobs() -> None:
    first, second = (Plan(7, random.Random(4)) for _ in range(2))
    assert [first.jobs() for _ in range(50)] == [second.jobs() for _ in range(50)]


def test_no_key_goes_on_after_an_unknown_outcome() -> None:
    plan = Plan(7, random.Random(5))
    before = [job for _ in range(50) for job in plan.jobs()]
    plan.break_off()
    after = [job for _ in range(50) for job in plan.jobs()]
    assert not {job.key for job in before if job.key} & {job.key for job in after}
    assert max(job.number for job in before) < min(job.number for job in after)


def findings(effects: list[int], *, committed: set[int], undone: set[int]) -> Findings:
    jobs = {number: Job(number=number, key="k") for number in committed | undone}
    truth = Truth(
        committed=frozenset(committed),
        accepted=frozenset(committed),
        jobs=jobs,
        bodies={},
        effects={"ordered": effects},
        dead={},
    )
    return Findings(truth, frozenset(undone), frozenset(jobs))


def test_what_was_rolled_back_must_not_be_there() -> None:
    one = NUMBERS + 1
    assert findings([one], committed={one}, undone=set()).violations() == []
    assert findings([one], committed={one}, undone={one}).violations()


def test_a_violation_comes_with_the_whole_story_of_its_message(tmp_path: Path) -> None:
    one, two = NUMBERS + 1, NUMBERS + 2
    history = History(tmp_path)
    history.note("invoke", numbers=[one, two], jobs=[{"number": one}, {"number": two}])
    history.note("ok", numbers=[one, two])
    history.note("fault", fault="broker killed", step="begin")
    history.note("publish", sent=[[one, "id-1", "jobs", "Unknown"]])
    history.note("publish", sent=[[one, "id-1", "jobs", "Sent"], [two, "id-2", "jobs", "Sent"]])
    history.note("call", group="ordered", number=one, attempt=1)
    history.note("MessageHandled", id="id-1", group="ordered", attempt=1)
    history.note("receive", who="batch", numbers=[two, one, *range(500), one])
    history.note("ack", who="ordered", numbers=[one])
    found = findings([one, one], committed={one, two}, undone=set())
    text = told(found.violations(), found, tmp_path)
    sections = text.split("  --- ")
    stories = {int(text.split()[0]): text for text in sections[1:]}
    for part in ("invoke", "ok", "broker killed", "Unknown", "Sent", "call", "Handled", "ack"):
        assert part in stories[one]
    assert "receive who=batch numbers=[2, 503] of 503" in stories[one], "not all 503 of them"
    assert "2 effects" in stories[one]
    assert "id-2" not in stories[one]
    assert "id-2" in stories[two], "it was lost, and has a story of its own"
    assert text.endswith("\n".join(["violations:", *found.violations()]))


# --- exactly once -------------------------------------------------------------------------------


def record(number: int, **changes: Any) -> Record:
    body = json.dumps({"number": number}).encode()
    return replace(Record(number, b"k", body, {"x-sweep": b"kept"}), **changes)


def letter(number: int, **headers: bytes) -> Record:
    known = {"x-sweep": b"kept", "message-id": b"its own", **dict.fromkeys(ORIGIN, b"known")}
    return record(number, headers={**known, **headers})


def exchange(inputs: Sequence[int], outputs: Sequence[int], *letters: Record) -> list[str]:
    """Return how the checks begin that find something."""
    found = Exchange(list(map(record, inputs)), list(map(record, outputs)), letters)
    return [line.partition(":")[0].split()[0] for line in found.violations()]


def test_an_exactly_once_group_has_one_end_for_each_record() -> None:
    assert exchange([1, 2, 2, 3], [1, 3], letter(2), letter(2)) == []
    assert exchange([1, 2], [1]) == ["I1", "I4"]
    assert exchange([1, 2], [1, 2, 2]) == ["I2", "I4"]
    assert exchange([1, 2, 2], [1, 2], letter(2)) == ["I5", "I4"]
    assert exchange([1], [1], letter(2)) == ["I2"]


def test_an_exactly_once_group_keeps_the_order_of_a_key() -> None:
    assert exchange([1, 2, 3], [2, 1, 3]) == ["I4"]
    assert exchange([1, 2, 1, 2], [1, 2, 1, 2]) == []


def test_dead_letters_of_an_exactly_once_group_are_what_came_in() -> None:
    assert exchange([1], [], letter(1, **{"x-sweep": b"changed"})) == ["I6"]
    assert exchange([1], [], letter(1, **{ORIGIN[0]: b""})) == ["I6"]
    assert exchange([1], [], replace(letter(1), body=b"changed")) == ["I6"]
