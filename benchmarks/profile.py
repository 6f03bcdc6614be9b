"""What a profile says at first sight."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

_SHOWN = 25


def hottest(folded: str) -> tuple[int, Counter[str], Counter[str]]:
    """Return samples, samples by innermost frame and samples by any frame of folded stacks.

    Imports are left out: a short run would show nothing else.
    """
    total, own, all_ = 0, Counter[str](), Counter[str]()
    for line in folded.splitlines():
        stack, _, number = line.rpartition(" ")
        if "importlib._bootstrap" in stack:
            continue
        frames = stack.split(";")
        total += int(number)
        own[frames[-1]] += int(number)
        for frame in set(frames):
            all_[frame] += int(number)
    return total, own, all_


def show_profiles(folder: Path) -> None:
    """Print the hottest frames of each profile in *folder*."""
    for path in sorted(folder.glob("*.txt")):
        total, own, all_ = hottest(path.read_text())
        print(f"\n{path}: {total} samples", file=sys.stderr)
        for title, counted in (("own", own), ("with callees", all_)):
            print(f"  {title}", file=sys.stderr)
            for frame, number in counted.most_common(_SHOWN):
                print(f"  {100 * number / max(1, total):5.1f}% {frame}", file=sys.stderr)
