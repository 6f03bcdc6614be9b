"""Bugs of the leases, and of the broker in the database that is fenced by them."""

from __future__ import annotations

from tests.seeded.bug import Bug, Edit, bug

_LEASES = "reliable_mq/store/leases.py"
_OWNERSHIP = "reliable_mq_sql/ownership.py"
_MYSQL = "reliable_mq/store/dialects/mysql.py"
_FREE = "            or_(lease.c.owner.is_(None), lease.c.expires_at <= now),"

BUGS = (
    Bug(
        "what a dead process held is free only if it gave it back",
        (
            Edit(_LEASES, _FREE, "            lease.c.owner.is_(None),"),
            Edit(
                _LEASES,
                "for name, (_, since) in marks.items() if since <= oldest}",
                "for name, (_, since) in marks.items() if since < 0 * oldest}",
            ),
        ),
        (
            "store/test_leases.py::"
            "test_the_dead_ones_things_are_taken_after_expiry_and_not_before[sqlite]",
        ),
    ),
    bug(
        "leases are taken from the living",
        _LEASES,
        _FREE,
        "            lease.c.expires_at > 0,",
        "store/test_leases.py::"
        "test_the_dead_ones_things_are_taken_after_expiry_and_not_before[sqlite]",
    ),
    bug(
        "a new owner has the epoch of the old one",
        _LEASES,
        "epoch=lease.c.epoch + 1",
        "epoch=lease.c.epoch",
        "store/test_leases.py::test_every_change_of_owner_raises_the_epoch[sqlite]",
    ),
    bug(
        "a lease is confirmed whatever its epoch",
        _LEASES,
        "select(lease.c.name)\n            .where(self._ours(), "
        "tuple_(lease.c.name, lease.c.epoch).in_(epochs))",
        "select(lease.c.name)\n            .where(self._ours(), "
        "lease.c.name.in_([name for name, _ in epochs]))",
        "store/test_leases.py::"
        "test_trap_9_a_lease_that_came_back_under_another_epoch_is_not_confirmed[sqlite]",
    ),
    bug(
        "a former owner moves the cursor of a partition",
        _OWNERSHIP,
        "                table.c.owner == self._owner,\n"
        "                table.c.epoch == one.lease_epoch,\n",
        "",
        "adapters/sql/test_consuming.py::"
        "test_an_owner_whose_lease_expired_cannot_move_the_cursor[sqlite]",
    ),
    bug(
        "the cursor of a partition goes past what is not acknowledged",
        "reliable_mq_sql/partitions.py",
        "return next(iter(self._unacked), self.position)",
        "return self.position",
        "adapters/sql/test_consuming.py::"
        "test_a_hole_in_the_acks_keeps_the_cursor_before_it[sqlite]",
    ),
    bug(
        "a byte of a body counts as one although the driver writes two",
        _MYSQL,
        "return len(driver.escape(value))",
        "return len(value)",
        "store/test_room.py::test_the_largest_row_that_is_said_to_fit_is_taken[asyncmy-escaped]",
        servers="mariadb",
    ),
    bug(
        "what is published is written without a look at what the database takes",
        "reliable_mq/store/outbox/writing.py",
        "        refuse_too_large(store, connection, row)\n",
        "        pass\n",
        "store/test_room.py::test_publishing_a_larger_one_is_a_typed_error_in_the_transaction_of_"
        "the_application[pymysql]",
        servers="mariadb",
    ),
    bug(
        "a member that comes moves leases although nothing is left for it",
        "reliable_mq/store/leases.py",
        "key=lambda one: (-holding[one], one)",
        "key=lambda one: one",
        "store/test_leases.py::test_nothing_moves_for_a_member_that_comes_while_all_have_enough",
    ),
    bug(
        "a session that a pooler gives to others keeps what was set for reads",
        "reliable_mq/store/walking.py",
        'if own == getattr(login, "backend_pid", None):',
        "if own:",
        "store/test_walking.py::"
        "test_behind_a_pooler_no_session_that_others_get_keeps_the_plans_of_a_read",
        servers="postgresql",
    ),
    bug(
        "a prepared read that a migration has made wrong is kept",
        "reliable_mq/store/direct.py",
        "        if not connection.invalidated:\n            connection.invalidate(error)\n",
        "",
        "store/test_walking.py::"
        "test_a_migration_fails_one_read_and_not_all_that_come_after_it[ours-walking]",
        "store/test_walking.py::"
        "test_a_migration_fails_one_read_and_not_all_that_come_after_it[given-reading]",
        servers="postgresql",
    ),
)
