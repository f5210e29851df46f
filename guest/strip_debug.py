"""Copies a WebAssembly module without its debug sections. Names of functions stay.

Usage: strip_debug.py FROM TO
"""

import sys

CUSTOM_SECTION = 0


def leb128(data, at):
    """Reads an unsigned number; gives it and where the next byte is."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def main(source, target):
    with open(source, "rb") as file:
        data = file.read()
    kept, at = bytearray(data[:8]), 8
    while at < len(data):
        length, body = leb128(data, at + 1)
        name_length, name = leb128(data, body) if data[at] == CUSTOM_SECTION else (0, 0)
        if not data[name : name + name_length].startswith(b".debug"):
            kept += data[at : body + length]
        at = body + length
    with open(target, "wb") as file:
        file.write(kept)


main(*sys.argv[1:])
