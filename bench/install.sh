#!/usr/bin/env bash
# Installs what neoc is measured against, by package name:
#
#   nginx, tarantool, luajit2, wrk  Debian packages (needs root or sudo)
#   workerd, deno                   npm; the programs inside the packages, no install script runs
#   native                          native/, built with cargo: Luau without a sandbox, and the upstream
#   lune                            only with --with-lune: cargo builds it for about 25 minutes
#
# What cannot be installed is named and left out; run.py measures what is there.
# Everything but the Debian packages lands in bench/build.
set -euo pipefail
cd "$(dirname "$0")"

with_lune=no
for argument in "$@"; do
  case "$argument" in
    --with-lune) with_lune=yes ;;
    *) echo "usage: bench/install.sh [--with-lune]" >&2; exit 64 ;;
  esac
done

say() { echo "bench: $*" >&2; }
skip() { say "skipped: $1, because $2"; }

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)

# The distribution starts a server when its package is installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
no_services() {
  [ -e "$policy" ] && return
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod +x "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
}

debian() { # PEER PROGRAM PACKAGE...
  local peer=$1 program=$2
  shift 2
  if dpkg --status "$@" >/dev/null 2>&1 || [ "$peer" = "$program" ] && command -v "$program" >/dev/null; then return; fi
  say "installing $*"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$@" >&2 &&
    command -v "$program" >/dev/null || skip "$peer" "apt-get could not install $*; see its message above"
}

npm_package() { # PEER
  [ -d "build/npm/$1" ] && return
  command -v npm >/dev/null || { skip "$1" "there is no npm"; return; }
  say "installing $1"
  npm install --prefix "build/npm/$1" --ignore-scripts --no-save --no-package-lock --no-audit --no-fund --silent "$1" >&2 ||
    skip "$1" "npm could not install it; see its message above"
}

mkdir -p build
if ! command -v apt-get >/dev/null; then
  skip "the Debian packages" "there is no apt-get"
elif ! "${as_root[@]}" true; then
  skip "the Debian packages" "root, or sudo without a password, is needed"
else
  no_services
  "${as_root[@]}" apt-get update --quiet >&2 || say "the list of packages may be old"
  # First, because its LuaJIT takes the place of Debian's other one; wrk and luajit run on either.
  debian nginx-lua nginx nginx libnginx-mod-http-lua
  debian luajit luajit luajit2
  debian tarantool tarantool tarantool
  debian wrk wrk wrk
fi
npm_package workerd
npm_package deno

say "building native"
cargo build --release --quiet --locked --manifest-path native/Cargo.toml --target-dir build/native ||
  skip native "cargo could not build it; see its message above"

if [ "$with_lune" = yes ] && [ ! -x build/lune/bin/lune ]; then
  say "building lune"
  cargo install lune --quiet --locked --root build/lune || skip lune "cargo could not build it; see its message above"
fi
