"""An import-linter contract that import-linter itself lacks: an allow-list."""

from __future__ import annotations

from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """Modules of ``source_modules`` import, of our packages, only ``allowed_modules`` and below.

    A list of what is forbidden would let every new module through.
    """

    source_modules = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Looks at direct imports only: what an allowed module imports is its own affair."""
        # Fields are descriptors; their types do not say that they yield plain lists here.
        sources = cast("list[str]", self.source_modules)
        allowed = cast("list[str]", self.allowed_modules)
        found = sorted(
            f"{importer} imports {imported}"
            for source in sources
            for importer in {source, *graph.find_descendants(source)}
            for imported in graph.find_modules_directly_imported_by(importer)
            if not any(_within(imported, place) for place in [source, *allowed])
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Lists the imports that are not allowed."""
        for line in check.metadata["found"]:
            output.print_error(line)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
