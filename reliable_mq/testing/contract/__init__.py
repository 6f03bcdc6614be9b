"""The adapter suite: what :class:`reliable_mq.adapter.Adapter` promises, checked on a real broker.

A broker's author writes one subclass and one fixture::

    from reliable_mq.registry import open_adapter
    from reliable_mq.testing.contract import AdapterContract

    class TestMyBroker(AdapterContract):
        @pytest.fixture
        def adapter(self, context):
            adapter = open_adapter("mybroker://localhost", context())
            yield adapter
            adapter.close()

The other fixtures of :class:`~reliable_mq.testing.contract.base.ContractBase` are hooks; giving
more of them runs more tests. A test that lacks a hook or a capability is skipped, and the reason
names which (``hook broker not given``, ``capability retains not declared``).
"""

from __future__ import annotations

import pytest

# pytest explains a failed assert only in modules it was told of before their import.
pytest.register_assert_rewrite(
    *(
        f"reliable_mq.testing.contract.{name}"
        for name in (
            "base",
            "consume",
            "crash",
            "ledger",
            "lifecycle",
            "order",
            "outage",
            "publish",
            "readers",
            "transact",
        )
    )
)

from reliable_mq.testing.contract.base import BrokerControl, ContractBase  # noqa: E402
from reliable_mq.testing.contract.consume import ConsumeContract  # noqa: E402
from reliable_mq.testing.contract.crash import CrashContract  # noqa: E402
from reliable_mq.testing.contract.lifecycle import LifecycleContract  # noqa: E402
from reliable_mq.testing.contract.order import OrderContract  # noqa: E402
from reliable_mq.testing.contract.outage import OutageContract  # noqa: E402
from reliable_mq.testing.contract.publish import PublishContract  # noqa: E402
from reliable_mq.testing.contract.transact import TransactContract  # noqa: E402

__all__ = ["AdapterContract", "BrokerControl", "ContractBase"]


class AdapterContract(
    PublishContract,
    ConsumeContract,
    OrderContract,
    TransactContract,
    CrashContract,
    OutageContract,
    LifecycleContract,
):
    """Everything an adapter promises. Subclass it and define the fixture ``adapter``."""
