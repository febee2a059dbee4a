"""The pool of constants of a Java class, to which more can be added (Java Virtual Machine Specification, 4.4)."""

import struct

COUNT = slice(8, 10)  # where a class says how many constants it has, and one more
TEXT, WHOLE, DOUBLE, CLASS, STRING, METHOD = 1, 3, 6, 7, 8, 10
SIZES = {WHOLE: 4, 4: 4, 5: 8, DOUBLE: 8, CLASS: 2, STRING: 2, 9: 4, METHOD: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}
WIDE = (5, DOUBLE)  # have two numbers


def text(value: str) -> bytes:
    """A text as the pool holds it."""
    return struct.pack(">BH", TEXT, len(value)) + value.encode()


def whole(value: int) -> bytes:
    """An int32 as the pool holds it."""
    return struct.pack(">Bi", WHOLE, value)


def double(value: float) -> bytes:
    """A float64 as the pool holds it."""
    return struct.pack(">Bd", DOUBLE, value)


class Pool:
    """The constants of a class, and those that are added to them; each is named by its number.

    Args:
        code: the class.
    """

    def __init__(self, code: bytes) -> None:
        self._code = code
        self._count = int.from_bytes(code[COUNT])
        self._end = _end(code, self._count)
        self._added = b""

    def string(self, value: str) -> int:
        """Add a string."""
        return self._add(struct.pack(">BH", STRING, self._add(text(value))))

    def owner(self, name: str) -> int:
        """Add a class, by its name with slashes."""
        return self._add(struct.pack(">BH", CLASS, self._add(text(name))))

    def method(self, owner: int, name_and_type: int) -> int:
        """Add a method of a class."""
        return self._add(struct.pack(">BHH", METHOD, owner, name_and_type))

    def extended(self) -> bytes:
        """The class with all constants."""
        code, count = self._code, struct.pack(">H", self._count)
        return code[: COUNT.start] + count + code[COUNT.stop : self._end] + self._added + code[self._end :]

    def _add(self, constant: bytes) -> int:
        self._added += constant
        self._count += 1
        return self._count - 1


def _end(code: bytes, count: int) -> int:
    """Where the constants of a class end."""
    at, number = COUNT.stop, 1
    while number < count:
        tag = code[at]
        at += 1 + (2 + int.from_bytes(code[at + 1 : at + 3]) if tag == TEXT else SIZES[tag])
        number += 2 if tag in WIDE else 1
    return at
