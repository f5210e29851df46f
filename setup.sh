#!/usr/bin/env bash
# Installs what the build needs and is not there, from Debian's packages; says what it installs.
#
#   gcc              links the host, compiles small C libraries of its dependencies, its allocator among them
#   g++              compiles libFuzzer, for `make fuzz`
#   python3, pip     fetch zig from PyPI, the guest's C++ compiler; see guest/toolchain.sh
#
# Rust is the one thing it does not install: 1.95 or newer, with rustfmt and clippy.
set -euo pipefail

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v c++ >/dev/null || missing+=(g++)
command -v python3 >/dev/null || missing+=(python3)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "setup: install ${missing[*]} with this system's package manager" >&2; exit 1; }
  echo "setup: installing ${missing[*]}" >&2
  "${as_root[@]}" apt-get update --quiet >&2
  "${as_root[@]}" apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >&2
fi

command -v cargo >/dev/null || { echo "setup: Rust 1.95 or newer is needed; install it with rustup" >&2; exit 1; }
