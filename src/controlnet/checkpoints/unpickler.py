"""A reader of pickles that can build plain values and nothing else.

A pickle is a program for a stack machine (https://docs.python.org/3/library/pickletools.html lists its instructions).
Here the machine knows no import: a global is a value or a function of the table that it is given, or else an inert
`Placeholder`. So a file may speak of any class without it being there, and nothing that it says is ever run.
"""

import struct
from collections.abc import Callable, Iterable, Mapping

from controlnet.checkpoints.mapped import AGAIN, BadFile
from controlnet.checkpoints.pickled_values import CONTAINERS, GLOBALS, Function, Placeholder, as_key

MOST_INSTRUCTIONS = 2_000_000  # a training's checkpoint with an optimizer has some 300,000
MOST_PICKLED = 32 * 2**20  # bytes; SD 1.5's is 0.3 MB
LONGEST_TEXT = 16 * 2**20  # bytes
LONGEST_INTEGER = 1024  # bytes; Python takes quadratic time to print one
LONGEST_NAME = 256  # characters of a global
MOST_COPIED = 4_000_000  # items in all; calls may take a container from the memo again and again
HIGHEST_PROTOCOL = 5
DAMAGE = (IndexError, KeyError, ValueError, TypeError, OverflowError, RuntimeError, struct.error)


def unpickle(pickled: bytes, start: int, persistent: Callable[[object], object]) -> tuple[object, int]:
    """The object of the pickle that begins at `start`, and where the pickle ends.

    `persistent` gives what stands for a persistent id. BadFile for everything that is no harmless pickle, and for more
    than the limits above.
    """
    machine = _Machine(pickled, start, persistent)
    try:
        return machine.run(), machine.position
    except DAMAGE as error:
        what = "cut off" if machine.position > len(pickled) else "damaged"
        place = min(machine.position, len(pickled))
        raise BadFile(
            f"its pickle is {what} at byte {place:,} ({type(error).__name__}: {str(error)[:LONGEST_NAME]}); {AGAIN}"
        ) from error


class _Machine:
    """Everything that an instruction may change: the stack, its marks, the memo and the place in the pickle."""

    def __init__(self, pickled: bytes, start: int, persistent: Callable[[object], object]) -> None:
        self.pickled, self.position = pickled, start
        self.persistent = persistent
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.left_to_copy = MOST_COPIED

    def run(self) -> object:
        for _ in range(MOST_INSTRUCTIONS):
            code = self.byte()
            if code == STOP:
                return self.stack.pop()
            instruction = INSTRUCTIONS.get(code)
            if instruction is None:
                raise BadFile(f"its pickle has the instruction {bytes([code])!r}, which no file of weights needs")
            instruction(self)
        raise BadFile(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions; no file of weights needs as many")

    # what the pickle says next

    def byte(self) -> int:
        self.position += 1
        return self.pickled[self.position - 1]

    def take(self, size: int) -> bytes:
        if size > LONGEST_TEXT:
            raise BadFile(f"its pickle has a text of {size:,} bytes, at most {LONGEST_TEXT:,} are read")
        begin, self.position = self.position, self.position + size
        if self.position > len(self.pickled):
            raise ValueError(f"{size:,} bytes announced, {len(self.pickled) - begin:,} are left")
        return self.pickled[begin : self.position]

    def counted(self, width: int) -> bytes:
        """Bytes whose number, of `width` bytes, goes before them."""
        return self.take(self.number(width))

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> bytes:
        begin, end = self.position, self.pickled.find(b"\n", self.position, self.position + LONGEST_TEXT)
        self.position = (end if end >= 0 else begin + LONGEST_TEXT) + 1
        if end < 0:
            raise ValueError("a line without an end")
        return self.pickled[begin:end]

    # the stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def push_tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size:
            raise IndexError("stack underflow")
        self.stack[-size:] = [items]

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    # containers

    def extend(self, items: list[object]) -> None:
        match self.stack[-1]:
            case list() as values:
                values.extend(items)
            case set() as values:
                values.update(map(as_key, items))
            case Placeholder():
                pass
            case other:
                raise TypeError(f"cannot add items to {type(other).__name__}")

    def set_items(self, items: list[object]) -> None:
        match self.stack[-1]:
            case dict() as values:
                values.update(pairs(items))
            case Placeholder():
                pass
            case other:
                raise TypeError(f"cannot set items of {type(other).__name__}")

    def build(self) -> None:
        """State of an object; what is plain has none that counts (of a state dictionary: versions of modules)."""
        self.stack.pop()
        self.stack[-1]  # there must be an object

    # globals

    def find(self, module: str, name: str) -> object:
        known = f"{RENAMED.get(module, module)}.{name}"
        if known in GLOBALS:
            return GLOBALS[known]
        if len(known) > LONGEST_NAME or not known.isprintable():
            raise BadFile(f"its pickle names a global {known[:LONGEST_NAME]!r}, which is no name")
        return Placeholder(known)

    def push_global_by_lines(self) -> None:
        module = self.line().decode()
        self.push(self.find(module, self.line().decode()))

    def push_global_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global's name is no text")
        self.push(self.find(module, name))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.called(function, arguments))

    def reduce_with_keywords(self) -> None:
        keywords = self.stack.pop()
        self.reduce()
        if keywords and not isinstance(self.stack[-1], Placeholder):
            raise TypeError("keywords for a function that has none")

    def push_instance(self) -> None:
        """By lines as a global, arguments from the mark on."""
        module = self.line().decode()
        function = self.find(module, self.line().decode())
        self.push(self.called(function, tuple(self.since_mark())))

    def push_object(self) -> None:
        function, *arguments = self.since_mark()
        self.push(self.called(function, tuple(arguments)))

    def called(self, function: object, arguments: object) -> object:
        if isinstance(function, Placeholder):
            return Placeholder(function.name)
        if not (isinstance(function, Function) and isinstance(arguments, tuple)):
            raise TypeError(f"{type(function).__name__} cannot be called with {type(arguments).__name__}")
        self.left_to_copy -= sum(len(each) for each in arguments if isinstance(each, (str, *CONTAINERS)))
        if self.left_to_copy < 0:
            raise BadFile(f"its pickle copies more than {MOST_COPIED:,} items; no file of weights needs as many")
        return function.call(*arguments)


RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's


def pairs(items: list[object]) -> Iterable[tuple[object, object]]:
    """Keys and values by turns, as pairs."""
    return zip(map(as_key, items[::2]), items[1::2], strict=True)


def _integer(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    if len(line) > LONGEST_INTEGER:
        raise ValueError("too long an integer")
    return int(line)


def _long(content: bytes) -> int:
    if len(content) > LONGEST_INTEGER:
        raise ValueError("too long an integer")
    return int.from_bytes(content, "little", signed=True)


def _python_2_text(content: bytes) -> str | bytes:
    """Python 2 did not tell text from bytes."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _quoted(line: bytes) -> str:
    line = line.strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("a text without quotes")
    return line[1:-1].decode("unicode_escape")


def _start_protocol(machine: _Machine) -> None:
    if (protocol := machine.byte()) > HIGHEST_PROTOCOL:
        raise BadFile(f"its pickle has protocol {protocol}, at most {HIGHEST_PROTOCOL} is read")


def _start_frame(machine: _Machine) -> None:
    if (size := machine.number(8)) > len(machine.pickled) - machine.position:
        raise ValueError(f"a frame of {size:,} bytes, which are not there")


def _drop_to_mark(machine: _Machine) -> None:
    machine.since_mark()


STOP = ord(".")
INSTRUCTIONS: Mapping[int, Callable[[_Machine], None]] = {
    code[0]: instruction
    for code, instruction in {
        b"\x80": _start_protocol,
        b"\x95": _start_frame,
        # atoms
        b"N": lambda it: it.push(None),
        b"\x88": lambda it: it.push(True),
        b"\x89": lambda it: it.push(False),
        b"I": lambda it: it.push(_integer(it.line())),
        b"J": lambda it: it.push(int.from_bytes(it.take(4), "little", signed=True)),
        b"K": lambda it: it.push(it.byte()),
        b"M": lambda it: it.push(it.number(2)),
        b"L": lambda it: it.push(_integer(it.line().removesuffix(b"L"))),
        b"\x8a": lambda it: it.push(_long(it.counted(1))),
        b"\x8b": lambda it: it.push(_long(it.counted(4))),
        b"F": lambda it: it.push(float(it.line())),
        b"G": lambda it: it.push(struct.unpack(">d", it.take(8))[0]),
        b"S": lambda it: it.push(_quoted(it.line())),
        b"U": lambda it: it.push(_python_2_text(it.counted(1))),
        b"T": lambda it: it.push(_python_2_text(it.counted(4))),
        b"V": lambda it: it.push(it.line().decode("raw_unicode_escape")),
        b"X": lambda it: it.push(it.counted(4).decode("utf-8", "surrogatepass")),
        b"\x8c": lambda it: it.push(it.counted(1).decode("utf-8", "surrogatepass")),
        b"\x8d": lambda it: it.push(it.counted(8).decode("utf-8", "surrogatepass")),
        b"C": lambda it: it.push(it.counted(1)),
        b"B": lambda it: it.push(it.counted(4)),
        b"\x8e": lambda it: it.push(it.counted(8)),
        b"\x96": lambda it: it.push(it.counted(8)),  # a bytearray, which nothing here changes
        # containers
        b"]": lambda it: it.push([]),
        b"l": lambda it: it.push(it.since_mark()),
        b"a": lambda it: it.extend([it.stack.pop()]),
        b"e": lambda it: it.extend(it.since_mark()),
        b")": lambda it: it.push(()),
        b"t": lambda it: it.push(tuple(it.since_mark())),
        b"\x85": lambda it: it.push_tuple(1),
        b"\x86": lambda it: it.push_tuple(2),
        b"\x87": lambda it: it.push_tuple(3),
        b"}": lambda it: it.push({}),
        b"d": lambda it: it.push(dict(pairs(it.since_mark()))),
        b"s": lambda it: it.set_items([it.stack.pop(-2), it.stack.pop()]),
        b"u": lambda it: it.set_items(it.since_mark()),
        b"\x8f": lambda it: it.push(set()),
        b"\x90": lambda it: it.extend(it.since_mark()),
        b"\x91": lambda it: it.push(frozenset(map(as_key, it.since_mark()))),
        # the stack and the memo
        b"0": lambda it: it.pop(),
        b"1": _drop_to_mark,
        b"2": lambda it: it.push(it.stack[-1]),
        b"(": lambda it: it.mark(),
        b"p": lambda it: it.remember(_integer(it.line())),
        b"q": lambda it: it.remember(it.byte()),
        b"r": lambda it: it.remember(it.number(4)),
        b"\x94": lambda it: it.remember(len(it.memo)),
        b"g": lambda it: it.push(it.memo[_integer(it.line())]),
        b"h": lambda it: it.push(it.memo[it.byte()]),
        b"j": lambda it: it.push(it.memo[it.number(4)]),
        # globals and calls
        b"c": lambda it: it.push_global_by_lines(),
        b"\x93": lambda it: it.push_global_from_stack(),
        b"R": lambda it: it.reduce(),
        b"\x81": lambda it: it.reduce(),
        b"\x92": lambda it: it.reduce_with_keywords(),
        b"i": lambda it: it.push_instance(),
        b"o": lambda it: it.push_object(),
        b"b": lambda it: it.build(),
        b"Q": lambda it: it.push(it.persistent(it.stack.pop())),
    }.items()
}
