"""What a pickle of weights may speak of: a few types and functions by name; all else is a placeholder.

The functions are ours and check what they are given. Names and arguments are those of torch/_utils.py.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from controlnet.checkpoints.mapped import MOST_DIMENSIONS

CONTAINERS = (list, tuple, dict, set, frozenset)
CERTAIN_HASH = 2**60  # integers below are their own hash; above, many of one hash can be found, which slow a dict down
HUGE = 2**48  # elements; torch's arithmetic on sizes and strides stays within 64 bits
STORAGE_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
DTYPES = (
    *STORAGE_TYPES.values(),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)


@dataclass(frozen=True, eq=False)
class Placeholder:
    """Something that a pickle speaks of and that was neither imported nor built: a class, a function, an object."""

    name: str
    """Module and name, as in "pytorch_lightning.callbacks.ModelCheckpoint"; of an object, that of its class."""


@dataclass(frozen=True)
class Function:
    """One of the few functions that a pickle may have called: ours, whatever name the pickle has for it."""

    call: Callable[..., object]


class NotDense(Placeholder):
    """A tensor of a kind that is not read: sparse, quantised, of a class of its own."""


def as_key(value: object) -> object:
    """Of a dictionary or set; what could make one slow, or is deep, becomes a placeholder."""
    match value:
        case bool() | None | str() | bytes() | Placeholder() | torch.dtype():
            return value
        case int() if abs(value) < CERTAIN_HASH:
            return value
        case _:
            return Placeholder(f"a key of type {type(value).__name__}")


def _ordered_dict(items: object = ()) -> OrderedDict[object, object]:
    pairs = (_values(pair) for pair in _values(items))
    return OrderedDict((as_key(key), value) for key, value in pairs)


def _default_dict(factory: object = None) -> dict[object, object]:
    return {}


def _set(items: object = ()) -> set[object]:
    return set(map(as_key, _values(items)))


def _values(container: object) -> Collection[object]:
    """Not of a tensor, which could have any number of them."""
    if not isinstance(container, CONTAINERS):
        raise TypeError(f"a container was expected, not a {type(container).__name__}")
    return container


def _complex(real: object, imaginary: object) -> complex:
    if not (isinstance(real, float) and isinstance(imaginary, float)):
        raise TypeError("the parts of a complex number are no numbers")
    return complex(real, imaginary)


def _encoded(text: object, encoding: object) -> bytes:
    """Bytes, as protocol 2 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise TypeError("a text in latin1 was expected")
    return text.encode("latin1")


def strided(storage: object, offset: object, size: object, stride: object) -> Tensor | Placeholder:
    """A view of a flat tensor. ValueError unless all its elements are in there, and not more of them than are there."""
    if isinstance(storage, Placeholder):
        return NotDense(storage.name)
    if not (isinstance(storage, Tensor) and storage.is_contiguous()):
        raise TypeError(f"a tensor of something else than a storage, {type(storage).__name__}")
    count, (start, *sizes), strides = storage.numel(), _counts((offset,), size), _counts(stride)
    elements, places = math.prod(sizes), math.prod(max(1, each) for each in sizes)
    last = start + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if elements else start
    if elements > count or places > HUGE or last > count - (elements > 0):
        raise ValueError(f"a tensor of shape {sizes}, strides {strides} and offset {start} in {count} elements")
    return storage.as_strided(sizes, strides, storage.storage_offset() + start)


def _counts(*given: object) -> list[int]:
    """Lengths, strides and the like, joined; TypeError for anything else."""
    joined: list[int] = []
    for counts in given:
        if not isinstance(counts, (tuple, list)) or len(counts) > MOST_DIMENSIONS:
            raise TypeError("a shape that is no tuple, or of too many dimensions")
        if not all(isinstance(count, int) and 0 <= count <= HUGE for count in counts):
            raise TypeError("a shape, stride or offset that is no number of elements")
        joined += counts
    return joined


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> object:
    return strided(storage, offset, size, stride)


def _tensor_v2(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    bits: object = None,
) -> object:
    return NotDense("torch.Tensor with conjugate bit") if bits else strided(storage, offset, size, stride)


def _tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    bits: object = None,
) -> object:
    """Types that are younger than the typed storages: the storage is of bytes."""
    if bits or not (isinstance(storage, Tensor) and isinstance(dtype, torch.dtype) and dtype in DTYPES):
        return NotDense("torch.Tensor of a type that is not read")
    return strided(storage.view(dtype), offset, size, stride)


def _parameter(data: object, *_: object) -> object:
    return data


NOT_DENSE = (
    *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_sparse_csr_tensor"),
    *("torch._utils._rebuild_nested_tensor", "torch._utils._rebuild_qtensor"),
    *("torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_wrapper_subclass"),
    *("torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_device_tensor_from_cpu_tensor"),
    "torch._tensor._rebuild_from_type_v2",
)
GLOBALS: Mapping[str, object] = {
    "collections.OrderedDict": Function(_ordered_dict),
    "collections.defaultdict": Function(_default_dict),
    "builtins.set": Function(_set),
    "builtins.frozenset": Function(lambda items=(): frozenset(_set(items))),
    "builtins.bytes": Function(lambda: b""),  # how protocol 2 says that there are none
    "builtins.complex": Function(_complex),
    "_codecs.encode": Function(_encoded),
    **{f"{module}.{name}Storage": dtype for name, dtype in STORAGE_TYPES.items() for module in ("torch", "torch.cuda")},
    "torch.storage.UntypedStorage": torch.uint8,
    **{str(dtype): dtype for dtype in DTYPES},
    "torch.Size": Function(lambda counts=(): torch.Size(_counts(counts))),
    "torch._utils._rebuild_tensor": Function(_tensor),
    "torch._utils._rebuild_tensor_v2": Function(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Function(_tensor_v3),
    "torch._utils._rebuild_parameter": Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": Function(_parameter),
    "torch.nn.parameter.Parameter": Function(_parameter),
    **{name: Function(lambda *_, name=name: NotDense(name)) for name in NOT_DENSE},
}
