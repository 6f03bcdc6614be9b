"""Leases: one owner at a time, shared fairly, taken over from the dead."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, bindparam, select, update
from sqlalchemy.exc import DBAPIError

from reliable_mq.clock import SystemClock
from reliable_mq.events import Events, LeaseMoved
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.leases import LeaseRow, LeaseSet, ensure_leases, fair_plan
from reliable_mq.testing.clock import FakeClock

NAMES = tuple(str(n) for n in range(8))
DURATION = 30.0


class Hands:
    """The database's clock and a process's monotonic one, turned apart from each other."""

    def __init__(self) -> None:
        self.database = 1_800_000_000.0
        self.passed = 0.0

    def monotonic(self) -> float:
        return self.passed

    def now(self):
        raise AssertionError("the application's wall clock decides nothing here")

    def advance(self, seconds: float) -> None:
        self.database += seconds
        self.passed += seconds

    @property
    def expression(self):
        return bindparam(
            "hands", callable_=lambda: int(self.database * 1e6), type_=BigInteger(), unique=True
        )


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def timed(store_url: str, hands: Hands) -> Iterator[Store]:
    store = Store(database_url=store_url, now=hands.expression)
    store.create()
    yield store
    store.dispose()


def lease_set(
    store: Store, owner: str, clock, *, names=NAMES, kind="things", **options
) -> LeaseSet:
    options = {"duration": DURATION, **options}
    return LeaseSet(store, kind, names, owner=owner, clock=clock, **options)


def settle_down(*sets: LeaseSet) -> None:
    """Two renewals of each: one to be seen, one to see."""
    for _ in range(2):
        for one in sets:
            one.renew()


def owners(store: Store, kind: str = "things") -> dict[str, str | None]:
    lease = store.tables.lease
    with store.engine.connect() as connection:
        rows = connection.execute(select(lease.c.name, lease.c.owner).where(lease.c.kind == kind))
        return {name: owner for name, owner in rows if not name.startswith("@")}


def test_the_only_candidate_gets_everything(timed, hands):
    one = lease_set(timed, "one", hands)
    held = one.renew()
    assert set(held.epochs) == set(NAMES)
    assert held.gained == frozenset(NAMES)
    assert held.lost == frozenset()
    assert one.renew().gained == frozenset()


def test_nothing_is_held_before_the_first_renewal(timed, hands):
    one = lease_set(timed, "one", hands)
    assert one.held == {}
    assert one.until < hands.monotonic()


def test_a_second_candidate_gets_its_half_from_the_first(timed, hands):
    one, two = lease_set(timed, "one", hands), lease_set(timed, "two", hands)
    one.renew()
    assert (two.renew().epochs, two.wanting) == ({}, True)
    assert len(one.renew().lost) == 4
    assert (len(two.renew().gained), two.wanting) == (4, False)
    assert set(one.held) | set(two.held) == set(NAMES)


def test_what_does_not_divide_evenly_is_shared_all_the_same(timed, hands):
    sets = [lease_set(timed, owner, hands) for owner in ("a", "b", "c")]
    settle_down(*sets)
    settle_down(*sets)
    assert sorted(len(one.held) for one in sets) == [2, 3, 3]
    assert not any(one.wanting for one in sets)


def test_more_candidates_than_things_leave_some_with_nothing(timed, hands):
    sets = [lease_set(timed, owner, hands, names=("x", "y")) for owner in ("a", "b", "c")]
    settle_down(*sets)
    settle_down(*sets)
    assert sorted(len(one.held) for one in sets) == [0, 1, 1]


def test_kinds_do_not_see_each_other(timed, hands):
    one = lease_set(timed, "one", hands, kind="a")
    two = lease_set(timed, "two", hands, kind="b")
    settle_down(one, two)
    assert len(one.held) == len(two.held) == len(NAMES)


def test_the_dead_ones_things_are_taken_after_expiry_and_not_before(timed, hands):
    dead, heir = lease_set(timed, "dead", hands), lease_set(timed, "heir", hands)
    settle_down(dead, heir)
    epochs = dict(dead.held)
    hands.advance(DURATION - 0.001)
    assert len(heir.renew().epochs) == 4
    hands.advance(0.001)
    held = heir.renew()
    assert set(held.epochs) == set(NAMES)
    assert all(held.epochs[name] > epoch for name, epoch in epochs.items())


def test_every_change_of_owner_raises_the_epoch(timed, hands):
    seen: dict[str, list[int]] = {name: [] for name in NAMES}
    for owner in ("a", "b", "a", "c"):
        one = lease_set(timed, owner, hands)
        for name, epoch in one.renew().epochs.items():
            seen[name].append(epoch)
        one.release_all()
    assert all(epochs == sorted(set(epochs)) and len(epochs) == 4 for epochs in seen.values())


def test_what_is_released_is_free_at_once(timed, hands):
    one, two = lease_set(timed, "one", hands), lease_set(timed, "two", hands)
    settle_down(one, two)
    one.release_all()
    one.release_all()
    assert one.held == {}
    assert one.until < hands.monotonic()
    assert set(two.renew().epochs) == set(NAMES)


def test_an_owner_that_was_silent_too_long_learns_what_it_lost(timed, hands):
    one, two = lease_set(timed, "one", hands), lease_set(timed, "two", hands)
    settle_down(one, two)
    mine = set(one.held)
    hands.advance(DURATION)
    two.renew()
    held = one.renew()
    assert held.lost == mine
    assert held.epochs == {}


def test_an_owner_that_was_silent_keeps_what_nobody_took(timed, hands):
    one = lease_set(timed, "one", hands)
    before = dict(one.renew().epochs)
    hands.advance(100 * DURATION)
    held = one.renew()
    assert held.epochs == before
    assert held.lost == frozenset()


def test_it_is_to_be_relied_on_only_until_well_before_its_expiry(timed, hands):
    one = lease_set(timed, "one", hands)
    one.renew()
    assert 0.5 * DURATION < one.until - hands.monotonic() < 0.95 * DURATION


def test_trap_9_what_is_confirmed_is_ours_until_the_transaction_ends(timed, hands):
    one, two = lease_set(timed, "one", hands), lease_set(timed, "two", hands)
    settle_down(one, two)
    with timed.transaction() as connection:
        assert one.confirm(connection, NAMES) == set(one.held)
        assert one.confirm(connection, []) == set()
    hands.advance(DURATION)
    two.renew()
    with timed.transaction() as connection:
        assert one.confirm(connection, NAMES) == set()
        assert two.confirm(connection, NAMES) == set(NAMES)


def test_trap_9_a_lease_that_came_back_under_another_epoch_is_not_confirmed(timed, hands):
    """The owner is the same, but others had it in between, and acted on it."""
    one = lease_set(timed, "one", hands)
    one.renew()
    lease = timed.tables.lease
    with timed.transaction() as connection:
        connection.execute(update(lease).values(epoch=lease.c.epoch + 2))
        assert one.confirm(connection, NAMES) == set()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_confirmed_lease_cannot_be_taken_over_before_the_transaction_ends(request, kind, hands):
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"), now=hands.expression)
    store.create()
    one, two = lease_set(store, "one", hands), lease_set(store, "two", hands)
    one.renew()
    hands.advance(DURATION)
    with store.transaction() as connection:
        assert one.confirm(connection, ["3"]) == {"3"}
        assert set(two.renew().epochs) == set(NAMES) - {"3"}
    assert set(two.renew().epochs) == set(NAMES)
    store.dispose()


def test_a_clock_that_jumps_back_does_not_keep_the_dead_alive(timed, hands):
    lease_set(timed, "dead", hands).renew()
    heir = lease_set(timed, "heir", hands)
    hands.database -= 3600
    heir.renew()
    hands.advance(2 * DURATION - 0.001)
    assert heir.renew().epochs == {}
    hands.advance(0.001)
    assert set(heir.renew().epochs) == set(NAMES)


def test_a_clock_that_jumps_back_takes_nothing_from_the_living(timed, hands):
    one, two = lease_set(timed, "one", hands), lease_set(timed, "two", hands)
    settle_down(one, two)
    before = (dict(one.held), dict(two.held))
    hands.database -= 3600
    for _ in range(12):
        hands.advance(DURATION / 3)
        one.renew()
        two.renew()
    assert (dict(one.held), dict(two.held)) == before


def test_members_long_dead_leave_no_rows(timed, hands):
    for n in range(5):
        lease_set(timed, f"dead-{n}", hands).renew()
        hands.advance(DURATION)
    lease_set(timed, "alive", hands).renew()
    hands.advance(5 * DURATION)
    lease_set(timed, "alive", hands).renew()
    lease = timed.tables.lease
    with timed.engine.connect() as connection:
        names = connection.execute(select(lease.c.name).where(lease.c.name.like("@%"))).scalars()
        assert list(names) == ["@alive"]


def test_a_failed_renewal_changes_nothing(timed, hands):
    one = lease_set(timed, "one", hands)
    one.renew()
    before, until = dict(one.held), one.until
    hands.advance(1)
    timed.tables.lease.drop(timed.engine)
    with pytest.raises(DBAPIError):
        one.renew()
    assert (dict(one.held), one.until) == (before, until)


def test_rows_that_are_missing_come_with_ensure_or_with_the_first_renewal(timed, hands):
    lease_set(timed, "one", hands, kind="a").ensure()
    with timed.transaction() as connection:
        ensure_leases(connection, timed, "b", NAMES)
        ensure_leases(connection, timed, "b", NAMES)
        ensure_leases(connection, timed, "nothing", [])
    assert owners(timed, "a") == owners(timed, "b") == dict.fromkeys(NAMES)
    assert len(lease_set(timed, "one", hands, kind="b").renew().epochs) == len(NAMES)


def test_each_move_is_an_event(timed, hands):
    events, moves = Events(), list[LeaseMoved]()
    events.subscribe(LeaseMoved, moves.append)
    one = lease_set(timed, "one", hands, names=("x",), events=events)
    one.renew()
    one.renew()
    one.release_all()
    assert moves == [LeaseMoved("things", "x", True), LeaseMoved("things", "x", False)]


def test_an_owner_too_long_for_its_column_is_refused_at_once(timed, hands):
    with pytest.raises(ValueError, match="63 bytes"):
        lease_set(timed, "x" * 64, hands)


def test_two_candidates_at_once_never_both_win(store_url):
    """Real clocks, leases that are always expired: everybody grabs all the time."""
    store = Store(database_url=store_url)
    store.create()
    with store.transaction() as connection:
        ensure_leases(connection, store, "things", NAMES)
    taken: Counter[tuple[str, int]] = Counter()
    failures: list[DBAPIError] = []
    guard = threading.Lock()
    start = threading.Barrier(4)
    fair = {Trouble.BUSY, Trouble.IDLE}
    if store.dialect.name == "mysql":
        # It may do so without a word, and how long the connection was idle is not known here.
        fair.add(Trouble.GONE)

    def grab(owner: str) -> None:
        one = lease_set(store, owner, SystemClock(), duration=0.001)
        start.wait()
        for _ in range(15):
            try:
                held = one.renew()
            except DBAPIError as error:
                # The server throws out whoever stands still for a second, on a busy machine too.
                if store.dialect.classify(error) not in fair:
                    failures.append(error)
                continue
            with guard:
                taken.update((name, held.epochs[name]) for name in held.gained)

    threads = [threading.Thread(target=grab, args=(f"owner-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert taken
    assert set(taken.values()) == {1}, "one epoch of a lease was given to two"
    store.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_what_another_took_between_the_look_and_the_grab_stays_the_others(
    request, kind, hands, monkeypatch
):
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"), now=hands.expression)
    store.create()
    one, two = lease_set(store, "one", hands), lease_set(store, "two", hands)
    two.ensure()
    look = two._plan

    def look_and_hesitate(*arguments):
        plan = look(*arguments)
        one.renew()
        return plan

    monkeypatch.setattr(two, "_plan", look_and_hesitate)
    assert two.renew().epochs == {}
    with store.transaction() as connection:
        assert one.confirm(connection, NAMES) == set(NAMES)
    store.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_rows_locked_by_a_stopped_candidate_hold_up_nobody(request, kind, hands):
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"), now=hands.expression)
    store.create()
    lease = store.tables.lease
    with store.transaction() as connection:
        ensure_leases(connection, store, "things", NAMES)
    with store.transaction() as stopped:
        stopped.execute(select(lease).where(lease.c.name == "3").with_for_update())
        assert set(lease_set(store, "two", hands).renew().epochs) == set(NAMES) - {"3"}
    store.dispose()


def test_it_works_by_the_databases_own_clock(store_url):
    store = Store(database_url=store_url)
    store.create()
    clock = FakeClock()
    one, two = lease_set(store, "one", clock), lease_set(store, "two", clock)
    settle_down(one, two)
    clock.advance(timedelta(seconds=DURATION))  # nothing happened but in this process's mind
    assert len(two.renew().epochs) == 4
    store.dispose()


def _in_turn(owner_of: dict[str, str | None], alive: set[str]) -> None:
    """Let each release what is too much for it and take its share."""
    for owner in sorted(alive):
        rows = [
            LeaseRow(name, holder, 0, 0, free=holder not in alive)
            for name, holder in owner_of.items()
        ]
        free = {row.name for row in rows if row.free}
        plan = fair_plan(rows, owner=owner, others=alive - {owner}, free=free)
        assert not set(plan.keep) & set(plan.release)
        for name in plan.release:
            owner_of[name] = None
        for row in plan.take:
            owner_of[row.name] = owner


def _spread(owner_of: dict[str, str | None], alive: set[str]) -> int:
    counts = Counter(owner_of.values())
    assert set(counts) <= alive
    return max(counts.values()) - min(counts.get(owner, 0) for owner in alive)


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=40),
    st.sets(st.sampled_from("abcd"), min_size=1),
)
def test_all_plans_together_end_with_everything_owned_evenly(present, alive):
    """Whoever owns what at first, and then nothing moves any more."""
    owner_of = {f"n{i}": owner for i, owner in enumerate(present)}
    for _ in range(3):
        _in_turn(owner_of, alive)
    assert _spread(owner_of, alive) <= 1
    settled = dict(owner_of)
    _in_turn(owner_of, alive)
    assert owner_of == settled


@given(st.integers(1, 40), st.sets(st.sampled_from("abcd"), min_size=1), st.sampled_from("abcd"))
def test_nothing_moves_for_a_member_that_comes_while_all_have_enough(count, alive, new):
    owner_of: dict[str, str | None] = {f"n{i}": None for i in range(count)}
    for _ in range(3):
        _in_turn(owner_of, alive)
    before = dict(owner_of)
    for _ in range(3):
        _in_turn(owner_of, alive | {new})
    assert _spread(owner_of, alive | {new}) <= 1
    moved = sum(owner_of[name] != before[name] for name in before)
    assert moved == (0 if new in alive else count // (len(alive) + 1))
