"""The allow-list contract catches what it is for."""

from __future__ import annotations

import pytest


def test_only_what_is_allowed_and_what_lies_below_it_may_be_imported() -> None:
    grimp = pytest.importorskip("grimp", reason="import-linter is a tool of the lint run")
    from tests.import_contracts import OnlyContract

    graph = grimp.ImportGraph()
    for name in ("core", "core.good", "core.good.part", "core.bad", "plug", "plug.inner"):
        graph.add_module(name)
    options = {"source_modules": ["plug"], "allowed_modules": ["core.good"]}
    contract = OnlyContract("plug is modest", session_options={}, contract_options=options)

    graph.add_import(importer="plug.inner", imported="core.good.part")
    graph.add_import(importer="plug.inner", imported="plug")
    graph.add_import(importer="core.good", imported="core.bad")
    assert contract.check(graph, verbose=False).kept

    graph.add_import(importer="plug.inner", imported="core.bad")
    check = contract.check(graph, verbose=False)
    assert not check.kept
    assert check.metadata["found"] == ["plug.inner imports core.bad"]
