"""Reading pickles without ever running what they hold.

A name that a pickle asks for never becomes the thing that it names, only a stand-in from its reader's own table; a name
that is not in the table is refused. ``mlx_peft.data.pickles`` reads arrays so, ``convert.pth`` PyTorch's tensors.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
    | {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"}
    | {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
    | {"BINBYTES", "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    | {"EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"}
)
"""Plain containers and arrays are written with these: no classes, extensions, persistent names, sets or buffers."""

_PUT = ("PUT", "BINPUT", "LONG_BINPUT")


class ForeignName(pickle.UnpicklingError):
    """A pickle asks for something that its reader has no stand-in for; ``name`` is what it asks for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}")
        self.name = name


class Name:
    """Stands for a name. It can be called, where the thing can, and nothing else."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise pickle.UnpicklingError("it calls what is no function here")
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


WIDE, MOST_WIDE = 64, 1000
"""A whole number has at most so many bits, but for so many of them: of narrower ones no more than a few have the same
hash."""

MOST_SETS = 1000
"""A pickle has at most so many sets: each takes 216 bytes of memory for one of the pickle."""

_InPython: Any = vars(pickle)["_Unpickler"]
"""The unpickler whose steps can be looked after; the one in C fills dictionaries unasked."""


class Unpickler(_InPython):  # type: ignore[misc]
    """Loads a pickle whose names are those of ``names`` alone.

    What repeats parts of the pickle (a text that is encoded, a list that becomes a dictionary) goes through ``spend``,
    so that a small pickle cannot fill the memory. Keys are texts and numbers: tuples can be made with equal hashes.
    """

    names: Mapping[tuple[str, str], Any]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = 2 * len(data)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][plain_key(key)] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][plain_key(key)] = value

    def _make_dictionary(self) -> None:
        items = self.pop_mark()
        pairs = zip(items[::2], items[1::2], strict=True)
        self.append({plain_key(key): value for key, value in pairs})

    def _add_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(plain_key(item) for item in items)

    def _make_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(plain_key(item) for item in items))

    dispatch: ClassVar[dict[int, Any]] = {
        **_InPython.dispatch,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dictionary,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _make_frozenset,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise ForeignName(f"{module}.{name}")
        return self.names[module, name]

    def spend(self, size: int) -> None:
        """Raises UnpicklingError once more was made than twice the pickle's own bytes."""
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it has")

    def latin1(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in old protocols: ``_codecs.encode(text, 'latin1')``."""
        self.spend(len(text))
        return text.encode("latin1")


def plain_key(key: Any) -> Any:
    """The key of a dictionary, or the member of a set. Raises UnpicklingError for other than texts and numbers."""
    if key is not None and type(key) not in (str, bytes, int, float, bool):
        raise pickle.UnpicklingError("it has a key that is neither a text nor a number")
    return key


def check(data: bytes, opcodes: Collection[str] = OPCODES) -> int:
    """The length of the first pickle in the data; nothing of it is run.

    Raises UnpicklingError, or the ValueError of damage, for opcodes other than these, for places in the memo that would
    have to be made room for, for too many sets, which take 216 bytes for one, and for too many wide numbers.
    """
    end, wide, sets = 0, 0, 0
    for opcode, argument, place in pickletools.genops(data):
        if opcode.name not in opcodes:
            raise pickle.UnpicklingError(f"it uses {opcode.name}")
        end = (place or 0) + 1
        if opcode.name in _PUT and not 0 <= int(argument or 0) <= end:
            raise pickle.UnpicklingError(f"it gives a value the number {argument} after {end} bytes")
        wide += type(argument) is int and argument.bit_length() > WIDE
        sets += opcode.name in ("EMPTY_SET", "FROZENSET")
        if wide > MOST_WIDE or sets > MOST_SETS:
            raise pickle.UnpicklingError("it has too many sets or too many numbers of more than 64 bits")
    return end
