"""Units as one line of text: `control=canny,image=cat.png,annotator=canny,annotator.low=50,end=0.5`.

It is a line of CSV, so a value with a comma is put into quotes with its name: `"hint=a,b.png",control=circle`. Lists of
numbers have colons: `schedule=1:1:0.5:0`.
"""

import csv
from collections.abc import Mapping
from dataclasses import fields
from io import StringIO
from typing import Any

from controlnet.generation.recipe import UnitChoice
from controlnet.generation.values import SEPARATOR


def parse(text: str) -> dict[str, str]:
    """The unit's options by name, still as text, for `recipe.read_unit`. ValueError if it is no such line."""
    pairs = [each.partition("=") for each in next(csv.reader([text]), [])]
    names = [name.strip() for name, _, _ in pairs]
    if not pairs or not all(sign for _, sign, _ in pairs):
        raise ValueError("expected NAME=VALUE,NAME=VALUE, such as control=circle,hint=ring.png,strength=0.8")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is given twice")
    return {name: value.strip() for name, (_, _, value) in zip(names, pairs, strict=True)}


def write(unit: UnitChoice) -> str:
    """The line that `parse` and `read_unit` make this unit of."""
    said: dict[str, Any] = {}
    for each in fields(unit):
        value = getattr(unit, each.name)
        if isinstance(value, Mapping):
            said |= {f"annotator.{name}": option for name, option in value.items()}
        elif value != each.default:
            said[each.name] = SEPARATOR.join(map(str, value)) if isinstance(value, tuple) else value
    line = StringIO()
    csv.writer(line, lineterminator="").writerow([f"{name}={value}" for name, value in said.items()])
    return line.getvalue()
