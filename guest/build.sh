#!/usr/bin/env bash
# Builds guest/build/neoc_guest.wasm from source. Needs cargo and rustc, python3 and pip, and nothing else:
#
#   C and C++   zig from PyPI, see toolchain.sh.
#   Rust's std  for wasm32-wasip1 as rustup ships it. Where rustup is absent or cannot reach its server,
#               Debian's rustc-web, cargo-web and rust-web-src, which build it from source (2 minutes).
#
# With the argument `conformance` it builds guest/build/neoc_guest_conformance.wasm as well, which runs Luau's
# own test files, and fetches these.
#
# A run with nothing to do takes a second. `rm -rf guest/build` starts afresh.
set -euo pipefail
guests=(neoc_guest)
[ "${1:-}" != conformance ] || guests+=(neoc_guest_conformance)
cd "$(dirname "$0")"
out=$PWD/build
fail() { echo "guest: $*" >&2; exit 1; }
mkdir -p "$out"
# Two builds at once wait for each other.
if command -v flock >/dev/null; then
  exec 9>"$out/lock"
  flock 9
fi
export ZIG_GLOBAL_CACHE_DIR=$out/zig-cache ZIG_LOCAL_CACHE_DIR=$out/zig-cache

./toolchain.sh "$out"

# --- Rust: which compiler, and whether it has std for the target -------------------------------------

has_target() { command -v rustc >/dev/null && [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-wasip1/lib" ]; }

debian_packages="rustc-web cargo-web rust-web-src"
has_debian_packages() { dpkg -s $debian_packages >/dev/null 2>&1; }

install_debian_packages() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  echo "guest: installing $debian_packages" >&2
  "${as_root[@]}" apt-get install --yes --quiet $debian_packages >&2 ||
    { "${as_root[@]}" apt-get update --quiet >&2 && "${as_root[@]}" apt-get install --yes --quiet $debian_packages >&2; }
}

# The last choice is kept, so that later runs do not ask rustup's server again.
source_of_std=$(cat "$out/source-of-std" 2>/dev/null || true)
if has_target; then
  source_of_std=installed
elif [ "$source_of_std" != debian ] || ! has_debian_packages; then
  if command -v rustup >/dev/null && timeout 120 rustup target add wasm32-wasip1 >&2 && has_target; then
    source_of_std=installed
  else
    echo "guest: rustup cannot add the target wasm32-wasip1; falling back to Debian's $debian_packages" >&2
    command -v apt-get >/dev/null ||
      fail "no std for wasm32-wasip1. Install it with 'rustup target add wasm32-wasip1', or build on Debian"
    has_debian_packages || install_debian_packages ||
      fail "no std for wasm32-wasip1. As root: apt-get update && apt-get install $debian_packages"
    source_of_std=debian
  fi
fi
echo "$source_of_std" >"$out/source-of-std"

if [ "$source_of_std" = installed ]; then
  echo "guest: std for wasm32-wasip1 from $(rustc --print sysroot)" >&2
  cargo=(cargo)
  build_std=()
else
  echo "guest: std for wasm32-wasip1 built from Debian's rust-web-src" >&2
  export PATH=/usr/bin:$PATH RUSTC=/usr/bin/rustc
  cargo=(/usr/bin/cargo)
  build_std=(-Zbuild-std=std,panic_abort)
fi

# fetch FOLDER DEPENDENCY: has cargo download a crate; what it says of it goes to FOLDER/metadata.json.
fetch() {
  rm -rf "$1"
  mkdir -p "$1/src"
  touch "$1/src/lib.rs"
  printf '[package]\nname = "fetch"\nedition = "2024"\n[dependencies]\n%s\n[workspace]\n' "$2" >"$1/Cargo.toml"
  "${cargo[@]}" metadata --quiet --format-version 1 --manifest-path "$1/Cargo.toml" >"$1/metadata.json" ||
    fail "cargo could not fetch $2; see its message above"
}

# --- mlua and Luau: the published crates with the changes that patch_crates.py lists --------------------

mlua_version=0.12.2
stamp="$mlua_version $(cat patch_crates.py interpreter.py | cksum)"
if [ "$(cat "$out/crates/stamp" 2>/dev/null || true)" != "$stamp" ]; then
  echo "guest: fetching and patching mlua $mlua_version" >&2
  rm -rf "$out/crates.new"
  fetch "$out/fetch" "mlua = { version = \"=$mlua_version\", features = [\"luau\", \"async\"] }"
  python3 patch_crates.py "$out/fetch/metadata.json" "$out/crates.new" || fail "mlua $mlua_version could not be patched"
  echo "$stamp" >"$out/crates.new/stamp"
  rm -rf "$out/crates"
  mv "$out/crates.new" "$out/crates"
  # Cargo does not see that C++ changed below a crate: what was compiled from the old one has to go.
  rm -rf "$out"/{target,native}/{,*/}{debug,release}/{build,.fingerprint}/{mlua-sys,luau0-src}-*
fi

# --- Luau's test files: they lie in a crate, which is not compiled ----------------------------------------

if [ "${#guests[@]}" = 2 ]; then
  fetch "$out/conformance" 'luau-vm = "=0.739.0"'
fi

# --- The build ----------------------------------------------------------------------------------------

export CC_wasm32_wasip1=$out/bin/cc CXX_wasm32_wasip1=$out/bin/cxx AR_wasm32_wasip1=$out/bin/ar
export CXXSTDLIB_wasm32_wasip1=c++
# The `cc` crate passes -fno-exceptions on WebAssembly; the wrapper drops it, and these turn them on.
export LUAU_CXXFLAGS="-fexceptions -fwasm-exceptions -mllvm -wasm-use-legacy-eh=false"
# The linker flavour and -Zbuild-std are unstable options.
export RUSTC_BOOTSTRAP=1
# Linked as a reactor: the host runs `_initialize` (C++'s static constructors) once, then calls exports.
eh=$(readlink -f "$out/eh")
export RUSTFLAGS="-C panic=abort -L native=$eh -l static=wasmeh -C link-arg=$eh/operator_new.o \
  -Zunstable-options -C linker-flavor=wasm-lld-cc -C linker=$out/bin/cxx -C link-self-contained=no \
  -C link-arg=-mexec-model=reactor -C link-arg=-lwasi-emulated-process-clocks -C link-arg=-lc++abi"
export CARGO_TARGET_DIR=$out/target
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
packages=("${guests[@]//_/-}")
"${cargo[@]}" build --locked --release --target wasm32-wasip1 "${build_std[@]}" "${packages[@]/#/--package=}" >&2 ||
  fail "cargo could not build the guest; see its message above"

for guest in "${guests[@]}"; do
  built=$out/target/wasm32-wasip1/release/$guest.wasm
  python3 strip_debug.py "$built" "$out/$guest.wasm.new" || fail "cannot strip $built"
  if cmp --silent "$out/$guest.wasm.new" "$out/$guest.wasm"; then
    rm "$out/$guest.wasm.new" # So that the host is not built anew for nothing.
  else
    mv "$out/$guest.wasm.new" "$out/$guest.wasm"
  fi
  echo "guest: $(wc -c <"$out/$guest.wasm") bytes in guest/build/$guest.wasm" >&2
done
