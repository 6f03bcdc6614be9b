"""What librdkafka prints."""

from __future__ import annotations

import logging
import re

from reliable_mq_kafka.health import Health

log = logging.getLogger("reliable_mq.kafka")

_FAILED = "FAIL"
_TIMED_OUT = "REQTMOUT"
_STATE = re.compile(r"\(after \d+ms in state (\w+)")
_NOT_CONNECTED = frozenset(
    {
        "INIT",
        "DOWN",
        "TRY_CONNECT",
        "CONNECT",
        "SSL_HANDSHAKE",
        "AUTH_LEGACY",
        "APIVERSION_QUERY",
    }
)
"""States of a broker before the client has sent it a request of its own
(``rd_kafka_broker_state_names``). In those of an authentication it may have, for that is done
again while requests wait for their answers."""
_BOOTSTRAP = "/bootstrap: "
"""In lines about an address from the broker URL, which the client gives up for a broker."""


class ClientLog:
    """Takes what librdkafka prints, so that it does not go to standard error.

    All of it at DEBUG: what matters of it reaches the application as an error or an outcome.
    """

    def log(self, level: int, text: str, *values: object) -> None:
        """Log a line of librdkafka's."""
        log.debug(text, *values)


class InterruptionLog(ClientLog):
    """Tells a client's *health* of connections that ended, and with them answers that were due.

    Nothing else does: librdkafka sends those requests again and reports the second answer only.
    A request that has no answer in time ends its connection too; the line about it
    (``rd_kafka_broker_timeout_scan``) comes before that. The line about the end
    (``rd_kafka_broker_set_error``) is left out where it would come twice within half a minute or
    the application has set ``log.connection.close``, but not among the debug lines of the context
    ``broker``. These are passed on only where the application has chosen debug lines itself,
    whichever: *verbose*.

    Lines are served by the client's ``poll``, and the line about an interruption is there before
    the answer that came in spite of it: with a poll after a call it is known.
    """

    def __init__(self, health: Health, *, verbose: bool) -> None:
        self._health = health
        self._verbose = verbose

    @staticmethod
    def contexts(chosen: str) -> str:
        """Return the value of ``debug``: what the application has *chosen*, and what it needs."""
        return f"{chosen},broker" if chosen else "broker"

    def log(self, level: int, text: str, *values: object) -> None:
        """Take a line: facility, client, text."""
        facility, _, line = values
        if facility == _TIMED_OUT or (facility == _FAILED and _may_have_cut(str(line))):
            self._health.on_interruption()
        if self._verbose or level > logging.DEBUG:
            super().log(level, text, *values)


def _may_have_cut(line: str) -> bool:
    """Tell whether the end of this connection may have cut off a request of a transaction.

    Each new connection to a broker that is down fails before anything is sent, and transactions
    are not sent to an address of which it is not known whose it is.
    """
    state = _STATE.search(line)
    return _BOOTSTRAP not in line and (state is None or state[1] not in _NOT_CONNECTED)
