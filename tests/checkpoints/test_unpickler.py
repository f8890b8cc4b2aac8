"""The reader of pickles agrees with Python's on plain values, and refuses what is damaged, endless or too much."""

import math
import pickle
import pickletools
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlnet.checkpoints.mapped import BadFile
from controlnet.checkpoints.pickled_values import Placeholder
from controlnet.checkpoints.unpickler import INSTRUCTIONS, STOP, unpickle
from torch_files import little_memory, named, value

PLAIN = [
    *(None, True, False, 0, 255, 256, 65_536, -1, 2**31, -(2**70), 1.5, -math.inf, 2 - 3j),
    *("", "text", "Grüße \U0001f600\n'\\", b"", b"bytes \xff", bytearray(b"abc")),
    *([], [1, [2, [3]]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {1: None, b"b": 2.5}}),
    *(set(), {1, "a"}, frozenset({2}), OrderedDict(a=1, b=2), [1] * 2000, {n: str(n) for n in range(2000)}),
]


def read(pickled: bytes) -> object:
    found, end = unpickle(pickled, 0, lambda said: Placeholder("a storage"))
    assert end <= len(pickled)
    return found


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("plain", PLAIN, ids=lambda it: type(it).__name__)
def test_a_plain_value_of_every_protocol_is_what_pickle_says(plain, protocol):
    if isinstance(plain, bytearray) and protocol < 5:
        assert isinstance(read(pickle.dumps(plain, protocol)), Placeholder)  # by its class
        return
    found = read(pickle.dumps(plain, protocol))
    assert found == plain
    assert type(found) is type(plain) or isinstance(plain, bytearray)


ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers(-(2**59), 2**59)
VALUES = st.recursive(ATOMS, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner))


@given(VALUES, st.integers(0, 5))
def test_any_plain_value_is_what_pickle_says(plain, protocol):
    assert read(pickle.dumps(plain, protocol)) == plain


def test_a_value_that_occurs_twice_is_one_object():
    shared = [1, 2]
    found = read(pickle.dumps({"a": shared, "b": shared}))
    assert found["a"] is found["b"]


def test_a_default_dictionary_keeps_its_items():
    assert read(pickle.dumps(defaultdict(list, a=1))) == {"a": 1}


def test_text_of_python_2_is_text_and_else_bytes():
    assert read(b"U\x04text.") == "text"
    assert read(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert read(b"S'it\\x41'\n.") == "itA"


def test_an_object_of_any_class_is_a_placeholder_with_its_name():
    found = read(pickle.dumps({"path": Path("x"), "error": ValueError("text")}))
    assert found["path"].name.endswith(".PosixPath")  # its module has moved in Python 3.13
    assert found["error"].name == "builtins.ValueError"


def test_two_placeholders_are_two_keys():
    assert len(read(b"}" + named("a", "A") + b"Ns" + named("a", "A") + b"Ns.")) == 2


def test_a_key_that_could_make_a_dictionary_slow_becomes_a_placeholder():
    same_hash = [n * (2**61 - 1) for n in range(2, 5)]
    for key in [*same_hash, 0.5, (1, 2)]:
        (found,) = read(b"}" + pickle.dumps(key, 2)[2:-1] + b"Ns.")
        assert isinstance(found, Placeholder)


def refusals() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "no end", b"K\x01"
    yield "an empty stack", b"."
    yield "a newer protocol", b"\x80\x06N."
    for name, code in {"ext1": b"\x82\x01", "ext2": b"\x83\x01\x00", "ext4": b"\x84\x01\x00\x00\x00"}.items():
        yield f"the extension registry, {name}", code + b"."
        yield f"the extension registry, {name}, called", code + b")R."
    yield "a persistent id in text", b"Pstorage\n."
    yield "a buffer out of band", b"\x97."
    yield "a read-only buffer", b"K\x01\x98."
    for width, codes in {1: b"U\x8c\x8aC", 4: b"TXB\x8b", 8: b"\x8d\x8e\x96"}.items():
        for code in codes:
            for size in (2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 9, 100):
                yield f"{size} bytes announced by {code:#x}", bytes([code]) + size.to_bytes(width, "little") + b"abc."
    yield "17 MB of text", b"X" + struct.pack("<I", 17 * 2**20) + bytes(17 * 2**20) + b"."
    yield "17 MB of bytes", b"B" + struct.pack("<I", 17 * 2**20) + bytes(17 * 2**20) + b"."
    yield "a frame beyond the end", b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."
    yield "a long integer in text", b"I" + b"9" * 10_000 + b"\n."
    yield "a long integer in bytes", b"\x8b" + struct.pack("<I", 100_000) + b"\x01" * 100_000 + b"."
    yield "an integer that is none", b"Iabc\n."
    yield "a float that is none", b"F" + b"x" * 100_000 + b"\n."
    yield "a text without an end", b"V" + b"x" * 100_000
    yield "a text without quotes", b"Stext\n."
    yield "no UTF-8", b"X\x02\x00\x00\x00\xff\xff."
    yield "a memo that was never set", b"h\x05."
    yield "a memo of an empty stack", b"q\x05."
    yield "a memo that is no number", b"N" + b"p" + b"9" * 1000 + b"x\n."
    yield "a tuple of too little", b"K\x01\x87."
    yield "a mark that is missing", b"K\x01t."
    yield "an odd number of keys and values", b"(K\x01d."
    yield "a list as a dictionary", b"]K\x01K\x02s."
    yield "a dictionary as a list", b"}K\x01a."
    yield "an append to text", value("text") + b"K\x01a."
    yield "a call of text", value("text") + b")R."
    yield "a call of a number", b"K\x01)R."
    yield "a call without a tuple", named("collections", "OrderedDict") + b"K\x01R."
    yield "a call with keywords", named("collections", "OrderedDict") + b")" + value({"a": 1}) + b"\x92."
    yield "a call of nothing", b"(o."
    yield "state of nothing", b"Nb."
    yield "a name that is a number", b"K\x01K\x02\x93."
    yield "a name of control characters", named("os\x1b[2J", "system") + b"."
    yield "a name of a thousand characters", named("a" * 1000, "b") + b"."
    yield "an encoding that runs code", named("_codecs", "encode") + value(("text", "idna")) + b"R."
    yield "a complex number of text", named("builtins", "complex") + value(("1", "2")) + b"R."
    yield "an ordered dictionary of numbers", named("collections", "OrderedDict") + value(([1, 2],)) + b"R."
    yield "a set of a number", named("builtins", "set") + value((5,)) + b"R."
    yield "a shape of text", named("torch", "Size") + value((("a",),)) + b"R."
    yield "a negative shape", named("torch", "Size") + value(((-1,),)) + b"R."
    yield "a shape of a thousand dimensions", named("torch", "Size") + value(((1,) * 1000,)) + b"R."
    yield "too many instructions", b"N0" * 1_100_000 + b"N."
    yield "marks without end", b"(" * 2_100_000
    yield "lists without end", b"]" * 2_100_000
    yield "sets without end, dropped", b"\x8f0" * 1_100_000
    for kind in ("set", "frozenset"):
        copied = named("builtins", kind) + b"q\x010](" + b"N" * 100_000 + b"e\x85q\x000"
        yield f"the same list copied into each {kind}", copied + b"h\x01h\x00R" * 1000 + b"."
    encoded = named("_codecs", "encode") + b"q\x010" + value("x" * 1_000_000) + value("latin1") + b"\x86q\x000"
    yield "the same text encoded a thousand times", encoded + b"h\x01h\x00R" * 1000 + b"."


@pytest.mark.parametrize(("what", "pickled"), [*refusals()], ids=lambda it: it if isinstance(it, str) else "")
def test_a_pickle_is_refused_that_has(what, pickled):
    with little_memory(), pytest.raises(BadFile) as refused:
        read(pickled)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("depth", [100_000])
@pytest.mark.parametrize("step", [b"\x85", b"\x85\x85", b"]\x94(h\x00e"], ids=["tuple", "tuples", "lists"])
def test_the_deepest_nesting_neither_overflows_the_stack_nor_memory(step, depth):
    with little_memory():
        found = read(b")" + step * depth + b".")
        assert isinstance(found, (tuple, list))
        del found


def test_every_byte_alone_is_an_instruction_or_refused():
    for code in range(256):
        for before in (b"", b"N", b"NN", b"(", b"}", b"]", b"(NN"):
            for after in (b"", b".", b"\x00", b"\n", b"\x01\n\x01.", b"\xff" * 20 + b"."):
                with little_memory():
                    try:
                        read(before + bytes([code]) + after)
                    except BadFile:
                        continue
                assert code in INSTRUCTIONS or code == STOP or STOP in before + after


def test_no_instruction_reaches_outside_of_the_allow_list():
    codes = {code for code in range(256) if code in INSTRUCTIONS}
    known = {ord(opcode.code) for opcode in pickletools.opcodes}
    assert known - codes - {STOP} == set(b"P\x82\x83\x84\x97\x98")
    assert codes <= known
