#!/usr/bin/env bash
# Makes the C++ half of the guest's toolchain in guest/build, once: a compiler, its libc and libc++
# (all from the PyPI wheel `ziglang`), wrappers that rustc and the `cc` crate can call, and the
# exception-handling runtime that zig's libc++abi leaves out.
#
# Luau is C++ and throws; in WebAssembly that takes the exception-handling proposal, in its new encoding.
# Every piece is made under a temporary name and moved into place, so an interrupted run leaves no half.
set -euo pipefail
cd "$(dirname "$0")"
out=$1
zig_version=0.17.1
zig_dir=$out/zig-$zig_version
zig=$zig_dir/ziglang
# Named after what it is made from, so that a change makes a new one, and cargo links anew.
eh_dir=$out/eh-$(cat toolchain.sh operator_new.cpp | cksum | cut -d' ' -f1)
fail() { echo "guest: $*" >&2; exit 1; }

# The compiler. --target needs no virtual environment, and no leave to change the system's Python.
if [ ! -x "$zig/zig" ]; then
  command -v python3 >/dev/null || fail "python3 is missing; on Debian: apt-get install python3 python3-pip"
  python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing; on Debian: apt-get install python3-pip"
  echo "guest: fetching zig $zig_version" >&2
  rm -rf "$zig_dir.new"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-compile --target "$zig_dir.new" "ziglang==$zig_version" >&2 ||
    fail "pip could not fetch ziglang==$zig_version; see its message above"
  [ -x "$zig_dir.new/ziglang/zig" ] || fail "the ziglang $zig_version wheel holds no zig for this machine"
  rm -rf "$zig_dir"
  mv "$zig_dir.new" "$zig_dir"
fi

# The wrappers drop what rustc and the `cc` crate pass and zig does not take. zig puts the stack first
# in memory by itself, so an overflow of it is a trap, not a write into the static data.
wrapper() { # NAME ZIG_COMMAND...
  local name=$1
  shift
  cat >"$out/bin/$name.new" <<WRAPPER
#!/usr/bin/env bash
arguments=()
for argument in "\$@"; do
  case "\$argument" in
    --target=* | -fno-exceptions | -shared) ;;
    -Wl,--no-export-dynamic | -Wl,--no-demangle | -Wl,--stack-first | -Wl,--strip-debug | -Wl,--allow-undefined) ;;
    *) arguments+=("\$argument") ;;
  esac
done
exec "$zig/zig" $* "\${arguments[@]}"
WRAPPER
  chmod +x "$out/bin/$name.new"
  mv "$out/bin/$name.new" "$out/bin/$name"
}
mkdir -p "$out/bin"
target="-target wasm32-wasi -mcpu=lime1+exception_handling"
wrapper cc "cc $target"
wrapper cxx "c++ $target"
wrapper ar ar

# The exception-handling runtime: three sources that the wheel ships but does not build, the tag, and
# an `operator new` that throws, an object by itself because libc++ has one, too.
if [ ! -f "$eh_dir/libwasmeh.a" ]; then
  echo "guest: building the exception-handling runtime" >&2
  rm -rf "$eh_dir.new"
  mkdir -p "$eh_dir.new"
  exceptions="-fwasm-exceptions -mllvm -wasm-use-legacy-eh=false -O2 -Wno-c23-extensions"
  libcxxabi="-std=c++23 -D_LIBCXXABI_BUILDING_LIBRARY -D_LIBCPP_BUILDING_LIBRARY -D_LIBCXXABI_HAS_NO_THREADS"
  includes=(-I "$zig/lib/libcxxabi/include" -I "$zig/lib/libcxx/src" -I "$zig/lib/libunwind/include")
  printf '\t.tagtype\t__cpp_exception i32\n\t.globl\t__cpp_exception\n__cpp_exception:\n' >"$eh_dir.new/tag.s"
  {
    for source in cxa_exception cxa_personality; do
      "$out/bin/cxx" $exceptions $libcxxabi "${includes[@]}" \
        -c "$zig/lib/libcxxabi/src/$source.cpp" -o "$eh_dir.new/$source.o"
    done
    "$out/bin/cc" $exceptions -DNDEBUG -D_LIBUNWIND_HIDE_SYMBOLS "${includes[@]}" \
      -c "$zig/lib/libunwind/src/Unwind-wasm.c" -o "$eh_dir.new/unwind.o"
    "$out/bin/cxx" $exceptions -std=c++23 -c operator_new.cpp -o "$eh_dir.new/operator_new.o"
    "$out/bin/cc" -c "$eh_dir.new/tag.s" -o "$eh_dir.new/tag.o"
    "$out/bin/ar" rcs "$eh_dir.new/libwasmeh.a" "$eh_dir.new"/{cxa_exception,cxa_personality,unwind,tag}.o
  } || fail "zig could not build the exception-handling runtime; see its message above"
  rm -rf "$eh_dir"
  mv "$eh_dir.new" "$eh_dir"
fi
ln -sfn "$(basename "$eh_dir")" "$out/eh"
