"""The servers that are measured: ours and the others, each with the command that starts it."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib import policy, server
from lib.place import BUILD, PEERS, REPOSITORY, SCRIPTS, fill
from lib.server import Server

NGINX_MODULES = Path("/usr/lib/nginx/modules")


@dataclass(frozen=True)
class Site:
    """What a server is asked to serve."""

    script: str
    """The handler in scripts/, for neoc and native; the others tell by the path what is asked."""
    upstream_port: int = 0
    """Where `/outbound` goes."""
    wait_s: int = 0
    """How long `/wait` waits."""
    n_tenants: int = 1
    """Tenants loaded. Only the first is asked."""
    n_requests: int = 0
    """Requests that will be alive at once."""


Command = Callable[[Path, Path, Site, int], list[str]]
"""Writes what the server needs to a folder: program, folder, site and port to its command line."""


@dataclass(frozen=True)
class Peer:
    """A server under one name of the report."""

    name: str
    vm: str
    """What runs a request, for the table."""
    program: str
    """A name of `PROGRAMS`."""
    command: Command
    is_ours: bool = False

    @contextmanager
    def serving(self, site: Site) -> Iterator[Server]:
        """Starts it in a folder of its own; ends it with the block."""
        port = server.free_port()
        with server.folder() as folder:
            command = self.command(PROGRAMS[self.program], folder, site, port)
            with server.serving(command, folder, port) as running:
                yield running


def _first(pattern: str) -> Path:
    """The program that matches below bench/build; where it would be, if none does."""
    return next(BUILD.glob(pattern), BUILD / pattern)


def _installed(name: str) -> Path:
    return Path(shutil.which(name) or BUILD / name)


PROGRAMS = {
    "neoc": REPOSITORY / "target" / "release" / "neoc",
    "native": BUILD / "native" / "release" / "native",
    "nginx": _installed("nginx"),
    "tarantool": _installed("tarantool"),
    "luajit": _installed("luajit"),
    "wrk": _installed("wrk"),
    "workerd": _first("npm/workerd/node_modules/@cloudflare/workerd-*/bin/workerd"),
    "deno": _first("npm/deno/node_modules/@deno/*/deno"),
    "lune": BUILD / "lune" / "bin" / "lune",
}


def upstream_serving(delay_ms: int) -> AbstractContextManager[Server]:
    """Starts the upstream that every outbound handler calls."""
    return _UPSTREAM.serving(Site(script=str(delay_ms)))


# Each command below has the signature of `Command`.


def _neoc(isolation: str | None) -> Command:
    def command(program: Path, folder: Path, site: Site, port: int) -> list[str]:
        script = _script(folder, site)
        upstream = site.upstream_port or None
        tenants = [policy.Tenant("tenant0", script, "/*", isolation, upstream)]
        tenants += [
            policy.Tenant(f"tenant{number}", script, f"/tenant{number}", isolation, has_wide_limits=False)
            for number in range(1, site.n_tenants)
        ]
        return [str(program), "host", "--policy", str(policy.write(folder, port, tenants, site.n_requests))]

    return command


def _native(verb: str) -> Command:
    def command(program: Path, folder: Path, site: Site, port: int) -> list[str]:
        line = [str(program), verb, str(port)]
        match verb:
            case "serve-bare":
                return line
            case "upstream":
                return [*line, site.script]
            case "serve-shared":
                return [*line, str(_script(folder, site)), str(site.n_tenants)]
            case _:
                return [*line, str(_script(folder, site))]

    return command


def _nginx(program: Path, folder: Path, site: Site, port: int) -> list[str]:
    config = _filled("nginx.conf", folder, site, port, modules=NGINX_MODULES)
    # The default log file would be opened before the configuration is read.
    return [str(program), "-p", str(folder), "-e", "stderr", "-c", str(config)]


def _tarantool(program: Path, folder: Path, site: Site, port: int) -> list[str]:
    return [str(program), str(_filled("tarantool.lua", folder, site, port))]


def _workerd(program: Path, folder: Path, site: Site, port: int) -> list[str]:
    _filled("worker.js", folder, site, port)
    services = "\n    ".join(f'(name = "tenant{number}", worker = .worker),' for number in range(site.n_tenants))
    return [str(program), "serve", str(_filled("workerd.capnp", folder, site, port, services=services))]


def _deno(program: Path, folder: Path, site: Site, port: int) -> list[str]:
    script = _filled("worker.js", folder, site, port)
    return [str(program), "serve", "--allow-net", "--host", "127.0.0.1", "--port", str(port), str(script)]


def _lune(program: Path, folder: Path, site: Site, port: int) -> list[str]:
    return [str(program), "run", str(_filled("lune.luau", folder, site, port))]


def _script(folder: Path, site: Site) -> Path:
    name = f"{site.script}.luau"
    return fill(SCRIPTS / name, folder / name, upstream_port=site.upstream_port, wait_s=site.wait_s)


def _filled(name: str, folder: Path, site: Site, port: int, **more: object) -> Path:
    values = {"port": port, "upstream_port": site.upstream_port or 9, "wait_s": site.wait_s}
    return fill(PEERS / name, folder / name, **values, **more)


NEOC = Peer("neoc", "fresh VM per request, sandboxed", "neoc", _neoc(None), is_ours=True)
NEOC_TENANT = Peer("neoc, isolation tenant", "one VM per tenant, sandboxed", "neoc", _neoc("tenant"), is_ours=True)
BARE = Peer("hyper alone", "no script: HTTP itself", "native", _native("serve-bare"))
SHARED = Peer("native, shared", "one Luau VM, no sandbox", "native", _native("serve-shared"))
FRESH = Peer("native, fresh", "fresh Luau VM per request, no sandbox", "native", _native("serve-fresh"))
NGINX = Peer("nginx-lua", "one LuaJIT VM per process, no sandbox", "nginx", _nginx)
TARANTOOL = Peer("tarantool", "one LuaJIT VM, no sandbox", "tarantool", _tarantool)
WORKERD = Peer("workerd", "one V8 isolate per tenant", "workerd", _workerd)
DENO = Peer("deno", "one V8 isolate per process", "deno", _deno)
LUNE = Peer("lune", "one Luau VM, no sandbox", "lune", _lune)
_UPSTREAM = Peer("upstream", "", "native", _native("upstream"))

ALL = [NEOC, NEOC_TENANT, BARE, SHARED, FRESH, NGINX, TARANTOOL, WORKERD, DENO, LUNE]


@dataclass(frozen=True)
class Field:
    """Who takes part."""

    present: list[Peer]
    absent: dict[str, str]
    """Name to reason."""

    def among(self, *wanted: Peer) -> list[Peer]:
        """Those of `wanted` that are present, in that order."""
        return [peer for peer in wanted if peer in self.present]


def survey() -> Field:
    """Looks for every server. Each that cannot take part is named with the reason."""
    absent = {peer.name: reason for peer in ALL if (reason := _why_absent(peer))}
    return Field([peer for peer in ALL if peer.name not in absent], absent)


def _why_absent(peer: Peer) -> str | None:
    if not PROGRAMS[peer.program].exists():
        return "neoc is not built" if peer.is_ours else "it is not installed"
    if peer is NGINX and not (NGINX_MODULES / "ngx_http_lua_module.so").exists():
        return "its Lua module is not installed"
    if peer is NEOC_TENANT and not _accepts_isolation():
        return "this neoc does not have the key `isolation`"
    return None


def _accepts_isolation() -> bool:
    with server.folder() as folder:
        tenants = [policy.Tenant("tenant0", SCRIPTS / "hello.luau", "/*", "tenant")]
        command = [str(PROGRAMS["neoc"]), "check", "--policy", str(policy.write(folder, 0, tenants))]
        checked = subprocess.run(command, env=server.environment(), capture_output=True, text=True, check=False)
    return checked.returncode == 0
