"""Copies the published mlua crate and makes the few changes that the guest needs.

Usage: patch_mlua.py METADATA TARGET, where METADATA is what `cargo metadata` printed.
Each change names its file, what stands there, what shall stand there, and why. One that finds
anything but exactly one place is an error, so a new version of mlua cannot be patched by halves.
"""

import json
import os
import shutil
import sys

CHANGES = [
    # WASI has no tmpfile, which the heap dump writes to. Without one the dump ends at once, with nothing.
    (
        "src/luau/heap_dump.rs",
        "            let file = libc::tmpfile();\n",
        '            #[cfg(target_os = "wasi")]\n            let file: *mut libc::FILE = std::ptr::null_mut();\n'
        '            #[cfg(not(target_os = "wasi"))]\n            let file = libc::tmpfile();\n',
    ),
    # When memory cannot grow, mlua aborts. Luau can do better: a null pointer is its "not enough memory".
    (
        "src/memory.rs",
        "            alloc::handle_alloc_error(new_layout);\n",
        "            mem_state.used_memory -= mem_diff;\n",
    ),
    (
        "src/memory.rs",
        "        alloc::handle_alloc_error(old_layout);\n",
        "        mem_state.used_memory -= mem_diff;\n",
    ),
]


def main(metadata, target):
    with open(metadata, encoding="utf-8") as file:
        packages = json.load(file)["packages"]
    manifest = next(package["manifest_path"] for package in packages if package["name"] == "mlua")
    shutil.copytree(os.path.dirname(manifest), target)
    for name, old, new in CHANGES:
        path = os.path.join(target, name)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if text.count(old) != 1:
            sys.exit(f"{name}: expected this text once, found it {text.count(old)} times:\n{old}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace(old, new))


main(*sys.argv[1:])
