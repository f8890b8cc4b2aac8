"""Where a zip file's entries lie.

Python's zipfile reads through a file object, trusts sizes and lets entries overlap; here they are only looked up, and
checked to be within the file and apart. Layout: APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.3.
"""

import mmap
import struct
from dataclasses import dataclass

from controlnet.checkpoints.mapped import AGAIN, BadFile, scattered

LOCAL = struct.Struct("<4s5H3I2H")  # before an entry's content
CENTRAL = struct.Struct("<4s6H3I5H2I")  # one for each entry, together near the end of the file
END = struct.Struct("<4s4H2IH")
END_64 = struct.Struct("<4sQ2H2I4Q")
END_64_LOCATOR = struct.Struct("<4sIQI")
LOCAL_SIGN, CENTRAL_SIGN, END_SIGN = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END_64_SIGN, END_64_LOCATOR_SIGN = b"PK\x06\x06", b"PK\x06\x07"
LONGEST_COMMENT = 0xFFFF  # bytes
IN_EXTRA_16, IN_EXTRA_32 = 0xFFFF, 0xFFFFFFFF  # "the number is in the zip64 record"
ZIP64_EXTRA = 1
ENCRYPTED = 1
STORED = 0
MOST_ENTRIES = 70_000  # as many tensors as are read, and some that describe the file


@dataclass(frozen=True)
class Entry:
    name: str
    offset: int
    """Of the content, in bytes from the file's start."""
    size: int
    """On disk."""
    is_plain: bool
    """Neither compressed nor encrypted."""


def read_directory(mapped: mmap.mmap) -> dict[str, Entry]:
    """All entries by name. BadFile if one is twice there, not within the file or overlaps another."""
    begin, end, count = _central_directory(mapped)
    if count > MOST_ENTRIES:
        raise BadFile(f"a zip of {count:,} entries, at most {MOST_ENTRIES:,} are read")
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    at = begin
    with scattered(mapped):
        for _ in range(count):
            entry, local_at, at = _entry(mapped, at, begin, end)
            if entry.name in entries:
                raise BadFile(f"its zip has the entry {entry.name!r} twice; {AGAIN}")
            entries[entry.name] = entry
            spans.append((local_at, entry.offset + entry.size, entry.name))
    if at != end:
        raise BadFile(f"its zip's directory has {end - at:,} bytes too many; {AGAIN}")
    _check_apart(spans)
    return entries


def _central_directory(mapped: mmap.mmap) -> tuple[int, int, int]:
    """Begin, end and number of entries."""
    at = mapped.rfind(END_SIGN, max(0, len(mapped) - END.size - LONGEST_COMMENT))
    if not 0 <= at <= len(mapped) - END.size:
        raise BadFile(f"a zip that was cut off, its end is missing; {AGAIN}")
    _, disk, directory_disk, count_here, count, size, begin, comment = END.unpack_from(mapped, at)
    if at + END.size + comment != len(mapped):
        raise BadFile(f"its zip does not end where it says; {AGAIN}")
    end = at
    locator_at = at - END_64_LOCATOR.size
    if locator_at >= 0 and mapped[locator_at : locator_at + 4] == END_64_LOCATOR_SIGN:
        _, _, end, _ = END_64_LOCATOR.unpack_from(mapped, locator_at)
        if end + END_64.size > locator_at or mapped[end : end + 4] != END_64_SIGN:
            raise BadFile(f"its zip64 record is not where the zip says; {AGAIN}")
        _, _, _, _, disk, directory_disk, count_here, count, size, begin = END_64.unpack_from(mapped, end)
    if disk or directory_disk or count_here != count or begin + size != end:
        raise BadFile(f"its zip's directory is not where the zip says, or on another disk; {AGAIN}")
    return begin, end, count


def _entry(mapped: mmap.mmap, at: int, begin: int, end: int) -> tuple[Entry, int, int]:
    """The entry that the directory has at `at`, where its local record is, and where the directory goes on."""
    if at + CENTRAL.size > end:
        raise BadFile(f"its zip's directory ends too early; {AGAIN}")
    sign, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment_size, _, _, _, local_at = (
        CENTRAL.unpack_from(mapped, at)
    )
    extra_at = at + CENTRAL.size + name_size
    after = extra_at + extra_size + comment_size
    if sign != CENTRAL_SIGN or after > end:
        raise BadFile(f"its zip's directory is damaged at byte {at:,}; {AGAIN}")
    raw_name = mapped[at + CENTRAL.size : extra_at]
    name = raw_name.decode("utf-8", "backslashreplace")
    size, packed, local_at = _with_zip64(mapped[extra_at : extra_at + extra_size], name, size, packed, local_at)
    is_plain = method == STORED and not flags & ENCRYPTED
    offset = _content_offset(mapped, local_at, raw_name, method, begin)
    if offset + packed > begin or (is_plain and packed != size):
        raise BadFile(f"its zip's entry {name!r} goes beyond the file's contents; {AGAIN}")
    return Entry(name, offset, packed, is_plain), local_at, after


def _with_zip64(extra: bytes, name: str, *numbers: int) -> list[int]:
    """Size, packed size and offset, from the zip64 extra field where 32 bits did not hold them."""
    wanted = [index for index, number in enumerate(numbers) if number == IN_EXTRA_32]
    result, at = list(numbers), 0
    while wanted and at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == ZIP64_EXTRA and size >= 8 * len(wanted) and at + 4 + size <= len(extra):
            found = struct.unpack_from(f"<{len(wanted)}Q", extra, at + 4)
            for index, number in zip(wanted, found, strict=True):
                result[index] = number
            return result
        at += 4 + size
    if wanted:
        raise BadFile(f"its zip's entry {name!r} lacks its size or place; {AGAIN}")
    return result


def _content_offset(mapped: mmap.mmap, local_at: int, raw_name: bytes, expected_method: int, limit: int) -> int:
    """Where an entry's content begins: after its local record, whose name and extra field have their own lengths."""
    if local_at + LOCAL.size > limit:
        raise BadFile(f"its zip's entry {raw_name!r} begins beyond the file's contents; {AGAIN}")
    sign, _, _, method, _, _, _, _, _, name_size, extra_size = LOCAL.unpack_from(mapped, local_at)
    name_at = local_at + LOCAL.size
    if sign != LOCAL_SIGN or mapped[name_at : name_at + name_size] != raw_name or method != expected_method:
        raise BadFile(f"its zip's entry {raw_name!r} and the directory differ; {AGAIN}")
    return name_at + name_size + extra_size


def _check_apart(spans: list[tuple[int, int, str]]) -> None:
    reached = 0
    for begin, end, name in sorted(spans):
        if begin < reached:
            raise BadFile(f"its zip's entry {name!r} overlaps another; {AGAIN}")
        reached = end
