"""From the start of a command to its end, for a script of one line."""

from functools import partial

from lib import program
from lib.failure import Failure
from lib.peers import PROGRAMS, Field
from lib.place import SCRIPTS
from lib.program import Ended
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, median, shown, spread
from lib.scale import Scale

TEXT = """A script that prints one line, run to its end by each command line, after one run that fills its caches."""

COMMANDS = {
    "neoc run": ("neoc", ["run"], "cli.luau"),
    "native run": ("native", ["run", "1"], "cli.luau"),
    "deno run": ("deno", ["run"], "cli.js"),
    "tarantool": ("tarantool", [], "cli.luau"),
    "luajit": ("luajit", [], "cli.luau"),
    "lune run": ("lune", ["run"], "cli.luau"),
}
"""Name to program, arguments and script."""


def measure(_: Field, scale: Scale) -> Section:
    """Every command line that is installed."""
    commands = {
        name: [str(PROGRAMS[key]), *arguments, str(SCRIPTS / script)]
        for name, (key, arguments, script) in COMMANDS.items()
        if PROGRAMS[key].exists()
    }
    entries = {name: partial(_hello, command) for name, command in commands.items()}
    outcome = interleave("cli", scale.n_starts, entries, warm=True)
    walls = {name: median(runs, lambda run: run.wall_ms) for name, runs in outcome.samples.items()}
    return Section(
        title="Command line to hello",
        text=TEXT,
        columns=["command", "ms", "least to most", "CPU ms"],
        rows=[
            [
                name,
                shown(walls[name]),
                spread(runs, lambda run: run.wall_ms),
                shown(median(runs, lambda run: run.cpu_ms)),
            ]
            for name, runs in outcome.samples.items()
        ],
        panels=[Bars("cli: ms to hello", [Bar(name, wall, name == "neoc run") for name, wall in walls.items()])],
        failed=outcome.failed,
    )


def _hello(command: list[str]) -> Ended:
    ended = program.run(command)
    if ended.output != "hello":
        raise Failure(f"it printed {ended.output!r}")
    return ended
