"""Messages of workers to their driver: a length, plain data as JSON, raw bytes. Nothing is unpickled.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import ast
import collections
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polarmap.worker.authentication import TAG_BYTES, AuthenticationError, Seal
from polarmap.worker.messages import Error, Reply
from polarmap.worker.parts import Part
from polarmap.worker.pytree import Layout, Packed, Structure
from polarmap.worker.stored_output import StoredOutput

LENGTHS = ">IQ"  # as struct writes them, of the plain data and of the raw bytes
LENGTHS_BYTES = struct.calcsize(LENGTHS)
PLAIN_BYTES = 1 << 28  # more than any plain data has: what claims more is not a message
RAW_BYTES = 1 << 40  # the same of raw bytes

Types = Mapping[tuple[str, str], type]  # by module and qualified name


class FrameError(Exception):
    """Bytes that are no message."""


def frame(fields: Any, data: bytes | bytearray | memoryview = b"", seal: Seal | None = None) -> bytes:
    """A message as it travels; `seal`: with a tag at its end."""
    text = json.dumps(fields, separators=(",", ":")).encode()
    parts = struct.pack(LENGTHS, len(text), len(data)), text, data
    return b"".join(parts if seal is None else (*parts, seal.tag(parts)))


class Frames:
    """The messages in a stream of bytes, as they become complete.

    seal : of their tags; None if they have none.

    >>> frames = Frames()
    >>> sent = frame(["a", 1], b"xyz")
    >>> list(frames.of(sent[:5])), list(frames.of(sent[5:]))
    ([], [(['a', 1], bytearray(b'xyz'))])
    """

    def __init__(self, seal: Seal | None = None) -> None:
        self._bytes, self._seal = bytearray(), seal

    def of(self, received: bytes) -> Iterator[tuple[Any, bytearray]]:
        """Those that are complete with these bytes; FrameError if they are none."""
        self._bytes += received
        tag_bytes = 0 if self._seal is None else TAG_BYTES
        while len(self._bytes) >= LENGTHS_BYTES:
            plain, raw = struct.unpack_from(LENGTHS, self._bytes)
            if plain > PLAIN_BYTES or raw > RAW_BYTES:
                raise FrameError(f"a message of {plain} and {raw} bytes")
            start, end = LENGTHS_BYTES + plain, LENGTHS_BYTES + plain + raw
            if len(self._bytes) < end + tag_bytes:
                return
            if self._seal is not None:
                self._check(self._seal, end)
            try:
                fields = json.loads(self._bytes[LENGTHS_BYTES:start])
            except (ValueError, RecursionError) as error:
                raise FrameError(str(error)) from error
            data = self._bytes[start:end]
            del self._bytes[: end + tag_bytes]
            yield fields, data

    def _check(self, seal: Seal, end: int) -> None:
        """FrameError unless the first message, which ends here, has the right tag."""
        try:
            with memoryview(self._bytes) as view:
                seal.verify((view[:end],), self._bytes[end : end + TAG_BYTES])
        except AuthenticationError as error:
            raise FrameError(str(error)) from error


def plain_reply(reply: Reply) -> dict[str, Any]:
    """A reply without the bytes of its result, as JSON takes it; TypeError for keys that are not plain."""
    fields: dict[str, Any] = {"task": reply.task, "attempt": reply.attempt}
    fields |= {"started": reply.started, "ended": reply.ended, "subtasks": reply.subtasks}
    if reply.error is not None:
        fields["error"] = reply.error[:3]
    if reply.result is not None:
        fields["structure"] = _plain_structure(reply.result.structure)
        fields["layout"] = _plain_layout(reply.result.layout)
    if reply.stored is not None:
        fields["stored"] = [_plain_layout(reply.stored.layout), reply.stored.parts]
    return fields


def parsed_reply(fields: Any, data: bytes | bytearray, types: Types) -> Reply:
    """The inverse; FrameError for what is no reply.

    types : that a structure may name, besides builtins, those of `collections` and imported ones that
        are containers.
    """
    try:
        error, stored, result = fields.get("error"), fields.get("stored"), None
        if "structure" in fields:
            structure = _structure(fields["structure"], types)
            result = Packed(structure, _layout(fields["layout"]), data)
        return Reply(
            int(fields["task"]),
            int(fields["attempt"]),
            result,
            error and Error(str(error[0]), str(error[1]), str(error[2]), None),
            float(fields["started"]),
            float(fields["ended"]),
            stored and StoredOutput(_layout(stored[0]), tuple(Part(*part) for part in stored[1])),
            tuple(map(int, fields["subtasks"])),
        )
    except (TypeError, ValueError, LookupError, AttributeError, SyntaxError, RecursionError) as wrong:
        raise FrameError(f"{type(wrong).__name__}: {wrong}") from wrong


def _plain_structure(structure: Structure) -> Any:
    """A string for a leaf; [type, keys, children] for a container; a sample tells of what it is one."""
    if len(structure) == 1:
        return structure[0]
    kind, keys, children = structure
    if kind == "sample":
        return ["sample", keys, _plain_structure(children)]
    return [_name(kind), [_plain_key(key) for key in keys], [_plain_structure(child) for child in children]]


def _structure(plain: Any, types: Types) -> Structure:
    if isinstance(plain, str):
        return (plain,)
    kind, keys, children = plain
    if kind == "sample":
        return "sample", None if keys is None else tuple(map(int, keys)), _structure(children, types)
    container = _type(kind, types, (dict, tuple, list))
    found = tuple(_key(key, types) for key in keys)
    return container, found, tuple(_structure(child, types) for child in children)


def _name(kind: type) -> list[str]:
    return [kind.__module__, kind.__qualname__]


def _type(name: Any, types: Types, bases: tuple[type, ...]) -> Any:
    """The class of this name, of those that were sent or are imported; nothing is imported for it."""
    module, qualname = map(str, name)
    found: Any = types.get((module, qualname))
    if found is None:
        found = collections if module == "collections" else sys.modules[module]
        for part in qualname.split("."):
            found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, bases)):
        raise FrameError(f"{module}.{qualname} is no container")
    return found


def _plain_key(key: Any) -> Any:
    """A key of a dict, as JSON takes it: numbers and strings as they are, others with their kind."""
    kind = type(key)
    if key is None or kind in (bool, int, float, str):
        return key
    if kind is bytes:
        return {"bytes": key.decode("latin-1")}
    if kind is complex:
        return {"complex": [key.real, key.imag]}
    if isinstance(key, np.generic) and not key.dtype.hasobject:
        return {"numpy": [_plain_dtype(key.dtype), key.tobytes().decode("latin-1")]}
    if kind is tuple or hasattr(kind, "_make"):
        return {"tuple": [_name(kind), [_plain_key(one) for one in key]]}
    raise TypeError(f"f returned a dict with a key of type {kind.__name__}: use strings, numbers or tuples")


def _key(plain: Any, types: Types) -> Any:
    if not isinstance(plain, dict):
        return plain
    [(kind, value)] = plain.items()
    if kind == "bytes":
        return value.encode("latin-1")
    if kind == "complex":
        return complex(*value)
    if kind == "numpy":
        return np.frombuffer(value[1].encode("latin-1"), _dtype(value[0]))[0]
    container = _type(value[0], types, (tuple,))
    children = [_key(one, types) for one in value[1]]
    return container._make(children) if hasattr(container, "_make") else tuple(children)


def _plain_layout(layout: Layout) -> list[Any]:
    return [[_plain_dtype(dtype), shape] for dtype, shape in layout]


def _layout(plain: Any) -> tuple[tuple[Any, tuple[int, ...]], ...]:
    return tuple((_dtype(dtype), tuple(map(int, shape))) for dtype, shape in plain)


def _plain_dtype(dtype: Any) -> Any:
    """The string of a dtype; of one with fields, what numpy makes of it for the header of a file."""
    if isinstance(dtype, str):
        return dtype
    return (
        dtype.str if np.dtype(dtype.str) == dtype else {"fields": repr(np.lib.format.dtype_to_descr(dtype))}
    )


def _dtype(plain: Any) -> Any:
    if isinstance(plain, str):
        return np.dtype(plain).str
    return np.lib.format.descr_to_dtype(ast.literal_eval(plain["fields"]))
