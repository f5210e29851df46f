"""A program that is run to its end."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lib.failure import Failure
from lib.server import environment, folder


@dataclass(frozen=True)
class Ended:
    """What a program printed, and what it used."""

    output: str
    wall_ms: float
    cpu_ms: float
    """User and system time of the process."""


def run(command: Sequence[str]) -> Ended:
    """Runs a command to its end. An exit code other than 0 is a failure."""
    with folder() as cwd, (cwd / "output").open("w+") as output:
        begin = time.monotonic()
        child = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=output, stderr=output)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        wall_s = time.monotonic() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read().strip()
    if child.returncode:
        raise Failure(f"exit code {child.returncode}: {printed.splitlines()[-1:]}")
    return Ended(printed, wall_s * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)
