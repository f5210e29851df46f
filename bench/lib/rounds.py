"""Side by side: every entry is measured once in each round, so that a slow minute hits all of them."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from lib.failure import Failure
from lib.place import REPOSITORY

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Outcome(Generic[Sample]):
    """What came of the rounds."""

    samples: dict[str, list[Sample]]
    """One sample a round, of each entry that never failed."""
    failed: dict[str, str]
    """Entry to reason. It was not measured again."""


def interleave(
    what: str, rounds: int, entries: Mapping[str, Callable[[], Sample]], warm: bool = False
) -> Outcome[Sample]:
    """Runs the rounds. Each starts with another entry, so that none always follows the same one.

    With `warm`, each entry runs once more before its first sample, and fills its caches then.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in entries}
    failed: dict[str, str] = {}
    order = list(entries)
    for number in range(rounds):
        for name in order:
            if name in failed:
                continue
            print(f"{what}: round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            try:
                if warm and number == 0:
                    entries[name]()
                samples[name].append(entries[name]())
            except (Failure, OSError, subprocess.SubprocessError) as problem:
                # The report must not tell where on this machine it was made.
                failed[name] = str(problem).replace(f"{REPOSITORY}/", "")
                print(f"{what}: {name} left out: {problem}", file=sys.stderr, flush=True)
        order = order[1:] + order[:1]
    return Outcome({name: samples[name] for name in entries if name not in failed}, failed)


def median(samples: Iterable[Sample], of: Callable[[Sample], float]) -> float:
    """The median of one figure of the samples."""
    return statistics.median(map(of, samples))


def spread(samples: Iterable[Sample], of: Callable[[Sample], float]) -> str:
    """The least and the most of one figure of the samples, for the table."""
    values = [of(sample) for sample in samples]
    return f"{shown(min(values))} to {shown(max(values))}"


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that so many percent of the others do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def shown(value: float) -> str:
    """Three digits: what such a measurement can tell."""
    magnitude = abs(value)
    for least, decimals in ((99.95, 0), (9.995, 1), (0.0005, 2)):
        if magnitude >= least:
            return f"{value:,.{decimals}f}"
    return "0"
