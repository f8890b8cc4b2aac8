"""Controls added up with weights: `0.6*a + 0.4*b`, `a + (b - c)`; whole or in chosen blocks.

Zero convolutions make it meaningful: what a control says is linear in them, and where they are zero it says nothing.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from math import isfinite

import torch
from torch import Tensor

from controlnet.checkpoints.control_formats import ControlFile
from controlnet.checkpoints.control_metadata import ControlMetadata
from controlnet.checkpoints.strict import check_fit
from controlnet.errors import UserError

Weights = dict[str, float]  # name of a control -> what it is multiplied by
ALIKE = ("family", "channel_order", "hint_range", "averaged")  # what cannot differ between controls that are summed

# block, as `--layers` takes it -> the names of its weights, as patterns; {} is a number
BLOCKS = {
    "hint": ("hint_encoder.*",),
    "time": ("encoder.embed_time.*",),
    "in": ("encoder.conv_in.*",),
    "down": ("encoder.down_blocks.*",),
    "down.{}": ("encoder.down_blocks.{}.*",),
    "middle": ("encoder.mid_block.*",),
    "zero": ("zero_convs.*", "zero_conv_middle.*"),
    "zero.{}": ("zero_convs.{}.*",),
    "zero.middle": ("zero_conv_middle.*",),
}


@dataclass(frozen=True)
class Merged:
    state: Mapping[str, Tensor]
    """By our names."""
    metadata: ControlMetadata
    changed: int
    """How many tensors are not simply the first control's."""


def parse(expression: str) -> Weights:
    """A sum and difference of names, each with a factor; UserError if it is anything else."""
    try:
        weights = _weights(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, ZeroDivisionError, OverflowError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(
            f"{expression!r}: {reason}; expected a weighted sum of names, such as 0.6*a + 0.4*b or a + (b - c)"
        ) from error
    if not all(isfinite(weight) for weight in weights.values()):
        raise UserError(f"{expression!r}: a factor without end; expected ordinary numbers")
    if left := weights.pop("", 0):
        raise UserError(f"{expression!r}: {left:g} stands alone; expected it to multiply a name, such as {left:g}*a")
    return weights


def merge(expression: str, files: Mapping[str, ControlFile], layers: Sequence[str] = ()) -> Merged:
    """The controls' sum in the blocks `layers` (default: everywhere), elsewhere the first control of `files`.

    Computed in float32, tensor by tensor; in the precision of the first. UserError if they don't go together.
    """
    weights = parse(expression)
    _check_names(expression, weights, files, may_leave_out_first=bool(layers))
    if unlocked := [str(file.path) for file in files.values() if file.decoder]:
        raise UserError(
            f"{', '.join(unlocked)}: trained with the base's decoder, which cannot be merged; merge controls that were "
            "trained on a locked base"
        )
    first, *others = files.values()
    for other in others:
        _check_alike(first, other)
    chosen = _chosen(first.state, layers)
    state = {
        name: _sum([(weights[it], files[it].state[name]) for it in weights], tensor.dtype) if name in chosen else tensor
        for name, tensor in first.state.items()
    }
    return Merged(state, _metadata(expression, files, layers), len(chosen))


def _weights(node: ast.expr) -> Weights:
    """What an expression multiplies each name by; numbers that stand alone are under the name ""."""
    match node:
        case ast.Name(name):
            return {name: 1.0}
        case ast.Constant(bool() | str() | bytes() | complex()):
            pass
        case ast.Constant(int() | float() as number):
            return {"": float(number)}
        case ast.UnaryOp(ast.USub(), operand):
            return _scaled(_weights(operand), -1)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _weights(operand)
        case ast.BinOp(left, ast.Add(), right):
            return _added(_weights(left), _weights(right))
        case ast.BinOp(left, ast.Sub(), right):
            return _added(_weights(left), _scaled(_weights(right), -1))
        case ast.BinOp(left, ast.Mult(), right):
            return _multiplied(_weights(left), _weights(right))
        case ast.BinOp(left, ast.Div(), right):
            return _scaled(_weights(left), 1 / _number(_weights(right)))
    raise ValueError(f"{ast.unparse(node)} is neither a name nor a number nor a sum, difference or multiple of them")


def _added(left: Weights, right: Weights) -> Weights:
    return {name: left.get(name, 0) + right.get(name, 0) for name in left | right}


def _scaled(weights: Weights, factor: float) -> Weights:
    return {name: weight * factor for name, weight in weights.items()}


def _multiplied(left: Weights, right: Weights) -> Weights:
    return _scaled(right, _number(left)) if left.keys() == {""} else _scaled(left, _number(right))


def _number(weights: Weights) -> float:
    if weights.keys() != {""}:
        raise ValueError("names are multiplied and divided by numbers only")
    return weights[""]


def _check_names(
    expression: str, weights: Weights, files: Mapping[str, ControlFile], may_leave_out_first: bool
) -> None:
    """The first may stand outside: when only some of its blocks are replaced."""
    missing, unused = [*(weights.keys() - files.keys())], [*(files.keys() - weights.keys())]
    if may_leave_out_first:
        unused = [name for name in unused if name != next(iter(files))]
    if missing or unused:
        complaints = [f"no file for {', '.join(sorted(missing))}"] if missing else []
        complaints += [f"{', '.join(sorted(unused))} does not occur in it"] if unused else []
        raise UserError(f"{expression!r}: {'; '.join(complaints)}; give each of its names one file: NAME=FILE")


def _check_alike(first: ControlFile, other: ControlFile) -> None:
    mine, theirs = asdict(first.metadata), asdict(other.metadata)
    unlike = [
        f"{name.replace('_', ' ')} {mine[name]} and {theirs[name]}" for name in ALIKE if mine[name] != theirs[name]
    ]
    if unlike:
        raise UserError(
            f"{first.path} and {other.path} do not add up: {', '.join(unlike)}; choose controls of one kind"
        )
    check_fit(str(other.path), other.state, first.state)


def _chosen(names: Iterable[str], layers: Sequence[str]) -> set[str]:
    """The weights of the given blocks; of all if none is given."""
    names, chosen = set(names), set()
    if not layers:
        return names
    for layer in layers:
        stem, _, number = layer.rpartition(".")
        patterns = BLOCKS.get(layer) or [it.format(number) for it in BLOCKS.get(f"{stem}.{{}}", (layer,))]
        found = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        if not found:
            raise UserError(
                f"--layers {layer}: no weight of this control is called so; expected some of "
                f"{', '.join(BLOCKS).replace('{}', 'N')}, or a pattern of our names, such as encoder.*.attentions.*"
            )
        chosen |= found
    return chosen


def _sum(terms: Sequence[tuple[float, Tensor]], dtype: torch.dtype) -> Tensor:
    total = torch.zeros_like(terms[0][1], dtype=torch.float32)
    for weight, tensor in terms:
        total.add_(tensor.float(), alpha=weight)
    return total.to(dtype)


def _metadata(expression: str, files: Mapping[str, ControlFile], layers: Sequence[str]) -> ControlMetadata:
    """The first's, with all conditions, and how it came about."""
    first, *others = (file.metadata for file in files.values())
    conditions = dict.fromkeys([first.condition, *(other.condition for other in others)])
    polarity = first.polarity if all(other.polarity == first.polarity for other in others) else "unknown"
    prediction = {metadata.prediction_type for metadata in (first, *others)}
    made_of = {"merged": expression, "files": {name: file.path.name for name, file in files.items()}}
    return replace(
        first,
        condition=" + ".join(conditions),
        polarity=polarity,
        prediction_type=prediction.pop() if len(prediction) == 1 else None,
        base_hash=first.base_hash if all(other.base_hash == first.base_hash for other in others) else None,
        training=made_of | ({"layers": list(layers)} if layers else {}),
    )
