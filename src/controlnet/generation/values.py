"""Values of a dataclass's fields from what files and command lines say: text, or what TOML and JSON have."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

SEPARATOR = ":"  # between the numbers of a list in text; a comma parts the options of a unit and the cells of CSV
YES_AND_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_fields(kind: type, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The values of the fields that are given; what is unknown or impossible is told among the `problems`."""
    types, known = get_type_hints(kind), [each.name for each in fields(kind)]
    read = {}
    for name, value in given.items():
        if name not in known:
            problems.append(f"there is no {name!r}; expected one of: {', '.join(known)}")
            continue
        try:
            read[name] = to_type(types[name], value)
        except (ValueError, TypeError):
            problems.append(f"{name} is {value!r}; expected {expected(types[name])}")
    return read


def to_type(kind: Any, value: Any) -> Any:
    """The value as of a type of ours, from text if need be. ValueError or TypeError if it cannot be."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return to_type(of[0], value)
    if origin in (Union, UnionType):
        return None if value is None else to_type(next(each for each in of if each is not type(None)), value)
    if origin is tuple:
        return _to_tuple(of, value)
    if origin is Literal and value not in of:
        raise ValueError
    if kind is bool and isinstance(value, str):
        if value.lower() not in YES_AND_NO:
            raise ValueError
        return YES_AND_NO[value.lower()]
    if kind in (int, float):
        return _to_number(kind, value)
    if kind is Path:
        return Path(value)
    if kind in (str, bool) and not isinstance(value, kind):
        raise TypeError
    return value


def _to_tuple(of: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    parts = value.split(SEPARATOR) if isinstance(value, str) else value
    if isinstance(parts, int | float):
        parts = [parts]
    if of[-1] is not Ellipsis and len(parts) != len(of):
        raise ValueError
    return tuple(to_type(of[0], part) for part in parts)


def _to_number(kind: type[int] | type[float], value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = kind(value)
    if not isinstance(value, str) and number != value:
        raise ValueError  # 2.5 steps
    return number


def expected(kind: Any) -> str:
    """A type of ours, for people."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return expected(of[0])
    if origin in (Union, UnionType):
        return expected(of[0])
    if origin is tuple:
        return f"{expected(of[0])}s" + (f", {len(of)} of them" if of[-1] is not Ellipsis else "")
    if origin is Literal:
        return " or ".join(map(str, of))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(kind, "a table of options")
