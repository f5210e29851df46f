"""Policies for neoc: limits wide enough that no measurement meets one."""

import shutil
from dataclasses import dataclass
from pathlib import Path

MIN_INSTANCES = 1000
"""neoc's default; more are asked for only where more requests are alive at once."""


@dataclass(frozen=True)
class Tenant:
    """One tenant of a policy."""

    name: str
    script: Path
    route: str
    isolation: str | None = None
    """The key of that name; left out when `None`."""
    upstream_port: int | None = None
    """The loopback port that it may call."""
    cpu: str = "5 m"
    wall: str = "60 m"


def write(folder: Path, port: int, tenants: list[Tenant], n_requests: int = 0) -> Path:
    """Writes a policy beside its scripts; `n_requests` is how many will be alive at once."""
    host = f"""[host]
listen = "127.0.0.1:{port}"
instances = {max(MIN_INSTANCES, n_requests + n_requests // 10)}
"""
    for script in {tenant.script for tenant in tenants if tenant.script.parent != folder}:
        shutil.copy(script, folder)
    file = folder / "policy.toml"
    file.write_text("\n".join([host, *map(_tenant, tenants)]))
    return file


def _tenant(tenant: Tenant) -> str:
    at = f"tenant.{tenant.name}"
    lines = [f"[{at}]", f'script = "{tenant.script.name}"', f'routes = ["{tenant.route}"]']
    if tenant.isolation is not None:
        lines.append(f'isolation = "{tenant.isolation}"')
    lines += [
        f"[{at}.limits]",
        'memory = "64 MiB"',
        f'cpu = "{tenant.cpu}"',
        f'wall = "{tenant.wall}"',
        'requests = "1000000/s"',
        'operations = "1000000/s"',
        "connections = 10000",
    ]
    if tenant.upstream_port is not None:
        lines += [
            f"[[{at}.allow.http]]",
            f'hosts = ["http://127.0.0.1:{tenant.upstream_port}"]',
            'addresses = ["127.0.0.0/8"]',
        ]
    return "\n".join(lines) + "\n"
