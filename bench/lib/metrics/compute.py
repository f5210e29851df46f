"""Programs that only compute, in neoc and in native Luau's interpreter."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lib import policy, program, server
from lib.failure import Failure
from lib.peers import PROGRAMS, Field
from lib.place import COMPUTE, SCRIPTS
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, median, shown
from lib.scale import Scale

HOW = NEOC, NATIVE, NATIVE_O2 = "neoc", "native -O1", "native -O2"
EMPTY = "empty"

TEXT = """User and system time of each program, less that of an empty program, in ms. Native is the same version of Luau
as a plain process: interpreter, sandboxed globals, compiled at Luau's default level 1 and at level 2. Ratios are
neoc's time over native's; below 1, neoc is faster. Every run must print what the first native run printed."""


def measure(field: Field, scale: Scale) -> Section:
    """Every program of compute/."""
    if not (PROGRAMS["neoc"].exists() and PROGRAMS["native"].exists()):
        raise Failure("neoc and native are both needed")
    programs = sorted(COMPUTE.glob("*.luau"))
    with _commands() as commands:
        expected = {file: program.run(commands[NATIVE](file)).output for file in programs}
        expected[SCRIPTS / f"{EMPTY}.luau"] = ""
        entries = {
            _key(file.stem, how): partial(_cpu_ms, command(file), output)
            for file, output in expected.items()
            for how, command in commands.items()
        }
        outcome = interleave("compute", scale.rounds, entries)
    medians = {key: median(samples, float) for key, samples in outcome.samples.items()}
    rows, ratios = _rows([file.stem for file in programs], medians)
    return Section(
        title="Compute",
        text=TEXT,
        columns=["program", NEOC, NATIVE, NATIVE_O2, "over -O1", "over -O2"],
        rows=rows,
        panels=[Bars("compute: neoc's time over native -O1", ratios)],
        failed=outcome.failed,
    )


@contextmanager
def _commands() -> Iterator[dict[str, Callable[[Path], list[str]]]]:
    """How each contestant runs a file."""
    with server.folder() as folder:
        tenant = policy.Tenant("compute", SCRIPTS / "empty.luau", "/compute")
        file = policy.write(folder, server.free_port(), [tenant])
        neoc = [str(PROGRAMS["neoc"]), "run", "--policy", str(file), "--tenant", tenant.name]
        native = str(PROGRAMS["native"])
        yield {
            NEOC: lambda script: [*neoc, str(script)],
            NATIVE: lambda script: [native, "run", "1", str(script)],
            NATIVE_O2: lambda script: [native, "run", "2", str(script)],
        }


def _key(name: str, how: str) -> str:
    return f"{name}, {how}"


def _cpu_ms(command: list[str], expected: str) -> float:
    ended = program.run(command)
    if ended.output != expected:
        raise Failure(f"it printed {ended.output!r}, not {expected!r}")
    return ended.cpu_ms


def _rows(names: list[str], medians: dict[str, float]) -> tuple[list[list[str]], list[Bar]]:
    """The table, and a bar for each ratio. A program that failed somewhere has no row."""
    rows, bars, products = [], [], []
    for name in names:
        if not all(_key(file, how) in medians for file in (name, EMPTY) for how in HOW):
            continue
        neoc, native, native_o2 = (medians[_key(name, how)] - medians[_key(EMPTY, how)] for how in HOW)
        products.append((neoc / native, neoc / native_o2))
        bars.append(Bar(name, neoc / native, is_ours=True))
        rows.append([name, *map(shown, (neoc, native, native_o2, neoc / native, neoc / native_o2))])
    if products:
        means = [statistics.geometric_mean(ratios) for ratios in zip(*products)]
        rows.append(["geometric mean", "", "", "", *map(shown, means)])
        bars.append(Bar("geometric mean", means[0], is_ours=True))
    return rows, bars
