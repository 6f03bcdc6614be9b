"""What a seeded bug is: texts to replace in the library, and the tests that must notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class PatchDoesNotApplyError(AssertionError):
    """The code moved: the bug has to be written anew."""


@dataclass(frozen=True)
class Edit:
    """Replace *old*, which stands in *path* exactly once, by *new*."""

    path: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        """Change the file below *folder*."""
        file = folder / self.path
        source = file.read_text()
        found = source.count(self.old)
        if found != 1:
            raise PatchDoesNotApplyError(f"{self.path} has {found} times {self.old!r}, not once")
        file.write_text(source.replace(self.old, self.new))


@dataclass(frozen=True)
class Bug:
    """A mistake that a library of this kind could have.

    *caught_by* are node ids of tests, below ``tests/``, each of which must fail. *servers* are
    what these tests need. *trap* is the number of the trap it springs, where it is here to show
    that the trap's own test notices. *slow*: what the test waits for does not
    come, or it starts a server of its own, which may not be one that *servers* names.
    """

    name: str
    edits: Sequence[Edit]
    caught_by: Sequence[str]
    servers: Sequence[str] = ()
    trap: int | None = None
    slow: bool = False

    @property
    def quick(self) -> bool:
        """Tell whether it is tried in every run: within seconds, and without a server."""
        return not (self.servers or self.slow)


def bug(
    name: str,
    path: str,
    old: str,
    new: str,
    *caught_by: str,
    servers: str = "",
) -> Bug:
    """Return a bug of one edit; *servers* are separated by blanks."""
    return Bug(name, (Edit(path, old, new),), caught_by, tuple(servers.split()))
