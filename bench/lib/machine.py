"""What was measured on, and which versions."""

import os
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

from lib.peers import PROGRAMS
from lib.place import REPOSITORY
from lib.process import TICKS_PER_SECOND
from lib.scale import Scale

VERSION_FLAGS = {"neoc": "--version", "nginx": "-v", "luajit": "-v", "wrk": "-v"}
"""How a program says its version, where it is not `--version`; native has none of its own."""


class Watch:
    """How much else the machine did since the watch was made."""

    def __init__(self) -> None:
        self._begin = self._read()

    def noise(self) -> str:
        """Shares of all cores' time that other programs and other guests of the hypervisor took."""
        elapsed, busy, stolen, ours = (now - begin for now, begin in zip(self._read(), self._begin))
        share = 100 / (elapsed * (os.cpu_count() or 1))
        others = max(0.0, busy - ours) * share
        return f"other programs took {others:.1f} % of the cores, the hypervisor {stolen * share:.1f} %"

    @staticmethod
    def _read() -> tuple[float, float, float, float]:
        """The clock; time in which some program ran; stolen time; our own and our ended children's. In seconds."""
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        times = os.times()
        busy, stolen = user + nice + system + irq + softirq, steal
        ours = times.user + times.system + times.children_user + times.children_system
        return time.monotonic(), busy / TICKS_PER_SECOND, stolen / TICKS_PER_SECOND, ours


def describe(scale: Scale, watch: Watch) -> list[tuple[str, str]]:
    """Rows for the report's head."""
    return [
        ("date", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"),
        ("processor", f"{os.cpu_count()} cores, {_field('/proc/cpuinfo', 'model name')}"),
        ("memory", f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.1f} GiB, {_swap()}"),
        ("kernel", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("huge pages", _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        ("noise", watch.noise()),
        ("neoc", _commit()),
        ("peers", ", ".join(_versions())),
        ("rounds", f"{scale.rounds} ({scale.memory_rounds} for memory), interleaved; the tables show medians"),
    ]


def _field(file: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", Path(file).read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _swap() -> str:
    return "no swap" if _field("/proc/meminfo", "SwapTotal").startswith("0 ") else "with swap"


def _chosen(file: Path) -> str:
    found = re.search(r"\[(\w+)\]", file.read_text()) if file.exists() else None
    return found[1] if found else "none"


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY)]
    commit = _printed([*git, "rev-parse", "--short", "HEAD"])
    changed = _printed([*git, "status", "--porcelain", "--", "host", "guest", "Cargo.toml", "Cargo.lock"])
    return f"commit {commit}{', with changes that are not committed' if changed else ''}"


def _versions() -> list[str]:
    """The first version number that each program prints."""
    versions = []
    for name, file in PROGRAMS.items():
        if name in ("neoc", "native") or not file.exists():
            continue
        printed = _printed([str(file), VERSION_FLAGS.get(name, "--version")])
        found = re.search(r"\d+\.[\w.+~-]+|\d{4}-\d\d-\d\d", printed)
        versions.append(f"{name} {found[0]}" if found else name)
    return versions


def _printed(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()
