"""A server that is measured: started in a folder of its own, ended with the measurement."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.client import Connection
from lib.failure import Failure
from lib.place import BUILD

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.0005


@dataclass(frozen=True)
class Server:
    """A running server."""

    pid: int
    port: int
    start_s: float
    """From the start of the process to its first answer."""

    def url(self, path: str) -> str:
        """An address of the server."""
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder below bench/build, gone at the end."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="run-") as path:
        yield Path(path)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment() -> dict[str, str]:
    """What every measured program gets: caches of our own, nothing that makes it slower or chattier."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return keep | {
        "NEOC_CACHE_DIR": str(BUILD / "cache" / "neoc"),
        "DENO_DIR": str(BUILD / "cache" / "deno"),
        "DENO_NO_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
    }


@contextmanager
def process(command: Sequence[str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block; its output goes to `output` in the folder."""
    with (cwd / "output").open("wb") as output:
        child = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=output, stderr=output)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def serving(command: Sequence[str], cwd: Path, port: int) -> Iterator[Server]:
    """A server that has given its first answer, to `/hello`."""
    begin = time.monotonic()
    with process(command, cwd) as child:
        _wait_for_answer(child, port, begin, cwd)
        yield Server(child.pid, port, time.monotonic() - begin)


def _wait_for_answer(child: subprocess.Popen[bytes], port: int, begin: float, cwd: Path) -> None:
    while time.monotonic() < begin + START_TIMEOUT_S:
        try:
            with Connection(port) as connection:
                body = connection.get("/hello")
        except OSError:
            if child.poll() is not None:
                raise Failure(f"it ended at its start: {_last_line(cwd)}") from None
            time.sleep(POLL_S)
            continue
        if body != "hello /hello":
            raise Failure(f"it answered {body!r}")
        return
    raise Failure(f"no answer after {START_TIMEOUT_S:.0f} s: {_last_line(cwd)}")


def _last_line(cwd: Path) -> str:
    lines = (cwd / "output").read_text(errors="replace").strip().splitlines()
    return lines[-1].replace(str(cwd), ".") if lines else "it printed nothing"
