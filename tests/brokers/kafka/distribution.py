"""The Kafka distribution in the cache folder: jars, and what makes a start fast."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..base import ServerFailed, missing

_POM = Path(__file__).with_name("pom.xml")
_MAVEN_TIMEOUT = 600


def java() -> Path:
    """The Java run time: JAVA_HOME's, else the one on the PATH."""
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return Path(home) / "bin" / "java"
    found = shutil.which("java")
    if found is None:
        raise missing("kafka", "java", "default-jre-headless maven")
    return Path(found)


class Distribution:
    """A folder of the cache, filled once for each pom.xml and Java.

    ``jars()`` fetches what is missing. ``archive`` is a class-data-sharing archive and
    ``formatted`` the files of a formatted log folder: both save about a second at each start and
    may be absent until somebody makes them with ``once``.
    """

    def __init__(self) -> None:
        identity = hashlib.sha256(_POM.read_bytes() + str(java().resolve()).encode())
        self.folder = cache_folder() / f"kafka-{identity.hexdigest()[:12]}"
        self.archive = self.folder / "classes.jsa"
        self.formatted = self.folder / "formatted"

    def jars(self) -> Path:
        """The folder with the jars, fetched with Maven when they are not there."""
        library = self.folder / "lib"
        self.once(library, self._fetch)
        return library

    def once(self, wanted: Path, make: Callable[[Path], None]) -> None:
        """Runs ``make(place)`` unless ``wanted`` exists, then renames ``place`` to it.

        Atomic, and only one process at a time does it. ``make`` may need other things made.
        """
        if wanted.exists():
            return
        with self._locked(wanted.name):
            if wanted.exists():
                return
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                place = Path(scratch) / wanted.name
                make(place)
                place.rename(wanted)

    def _fetch(self, library: Path) -> None:
        if shutil.which("mvn") is None:
            raise missing("kafka", "mvn (Maven)", "default-jre-headless maven")
        # Maven writes into the project's folder, and that may be read-only.
        pom = library.with_name("pom.xml")
        shutil.copyfile(_POM, pom)
        done = subprocess.run(
            [
                *("mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"),
                *("-DincludeScope=runtime", f"-DoutputDirectory={library}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MAVEN_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise ServerFailed(f"Maven could not fetch Kafka's jars:\n{done.stdout}\n{done.stderr}")

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        # A lock for each: one for all would be waited for by who holds it.
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{what}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def cache_folder() -> Path:
    """RMQ_TEST_CACHE, else a folder in the user's cache."""
    own = os.environ.get("RMQ_TEST_CACHE")
    if own:
        return Path(own)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "reliable-mq-tests"
