"""Attention as matrix products, where that is faster than torch's fused one: on CPUs.

Shapes: b batch, a heads, q queries, k keys, d width of a head, n heads of all pictures.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad, scaled_dot_product_attention

from controlnet.devices import has_fast_bfloat16

LITTLE = 2**16  # scores of all heads and pictures: for fewer, one call of torch's takes less time than several
FEW_SCORES = 2**16  # of a head and picture, 16x16 by 16x16: for more, torch's fused attention is faster
FEW_SCORES_OF_TILES = 2**19  # the same with AMX
MANY_SCORES = 2**19  # of a head and picture: for more, scores that end as shares are faster than torch's in bfloat16
SCORES_AT_ONCE = 2**20  # of a head, where they end as shares: 2 MB
QUERIES_AT_ONCE = 256  # or more: each product puts the keys in another order first
BELOW = 8.0  # how far below 0 scores are shifted, at least: the sigmoid is the exponential but for exp(-8) of it
FURTHEST = 52.0  # that scores may be from 0 before they are shifted
LEAST_SHARES = 1e-26  # of a query, summed up: where there are fewer, some may have been below float32's least number
VECTOR = 16  # columns that a product computes at once: 48 take three quarters of the time of 40


def attend(query_baqd: Tensor, key_bakd: Tensor, value_bakd: Tensor, scale: float) -> Tensor:
    """Attention (b, a, q, d) in the way that is fastest for its shape, precision and device.

    In the queries' precision, or in float32 where it is the products' own sums that are divided.
    """
    scores = query_baqd.shape[2] * key_bakd.shape[2]
    if is_free(query_baqd) and query_baqd.shape[:2].numel() * scores < LITTLE:
        return scaled_dot_product_attention(query_baqd, key_bakd, value_bakd, scale=scale)
    if is_quick(query_baqd):
        if scores <= (FEW_SCORES_OF_TILES if has_tiles() else FEW_SCORES):
            with _bfloat16_products_of_float32():
                return _precisely_at_once(query_baqd, key_bakd, value_bakd, scale)
        if scores > MANY_SCORES and scale == 1:  # to scale queries that are rounded rounds them once more
            return _by_sigmoids(query_baqd, key_bakd, value_bakd)
    if query_baqd.device.type == "cpu" and scores <= FEW_SCORES:
        return _at_once(query_baqd, key_bakd, value_bakd, scale)
    return scaled_dot_product_attention(query_baqd, key_bakd, value_bakd, scale=scale)


def is_quick(x: Tensor) -> bool:
    """Whether `x` is in bfloat16 on a CPU that is fast at it, and nobody wants gradients or compiles."""
    can_choose = hasattr(torch.backends.mkldnn, "matmul")  # since torch 2.9
    return x.dtype == torch.bfloat16 and is_free(x) and can_choose and has_fast_bfloat16(x.device)


def has_tiles() -> bool:
    """Whether this processor multiplies float32 as bfloat16, in tiles (AMX): elsewhere oneDNN does not round it."""
    return torch.cpu._is_amx_tile_supported()


def is_free(x: Tensor) -> bool:
    """Whether `x` is on a CPU, and nobody wants gradients or compiles: then how to compute is ours to choose."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _at_once(query_baqd: Tensor, key_bakd: Tensor, value_bakd: Tensor, scale: float) -> Tensor:
    query_nqd, key_nkd, value_nkd = (x.flatten(0, 1) for x in (query_baqd, key_bakd, value_bakd))
    nothing = query_nqd.new_empty(1, 1, 1)
    scores_nqk = torch.baddbmm(nothing, query_nqd, key_nkd.transpose(1, 2), beta=0, alpha=scale)
    seen_nqd = torch.bmm(scores_nqk.softmax(-1).to(value_nkd.dtype), value_nkd)
    return seen_nqd.reshape(*query_baqd.shape[:2], *seen_nqd.shape[1:])


def _precisely_at_once(query_baqd: Tensor, key_bakd: Tensor, value_bakd: Tensor, scale: float) -> Tensor:
    """With scores in float32: in bfloat16 large ones would be off by a tenth."""
    return _at_once(query_baqd.float(), key_bakd.float(), value_bakd, scale)


def _by_sigmoids(query_baqd: Tensor, key_bakd: Tensor, value_bakd: Tensor) -> Tensor:
    """Of scaled queries, in float32. Softmax does not change if all scores are shifted, and far below 0 the exponential
    is the sigmoid, with which oneDNN can end a product: so a score is a share before it leaves the registers.

    One more column of queries and keys shifts a query's scores by its length times the longest key's, and further;
    what is left of a vector of values sums up the shares, a part in each column. A head whose scores may lie so far
    apart that float32 has no number for some of them is torch's.
    """
    query_nqd, key_nkd, value_nkd = (x.flatten(0, 1) for x in (query_baqd, key_bakd, value_bakd))
    keys, width = value_nkd.shape[1:]
    longest_n = vector_norm(key_nkd, dim=-1, dtype=torch.float32).amax(1)
    highest_nq = vector_norm(query_nqd, dim=-1, dtype=torch.float32) * longest_n[:, None]
    shift_nq1 = -(highest_nq + BELOW).to(query_nqd.dtype)[..., None]
    low_nqd, one_nkd = torch.cat([query_nqd, shift_nq1], -1), pad(key_nkd, (0, 1), value=1.0)
    parts = VECTOR - width % VECTOR
    part_kp = torch.eye(parts, dtype=value_nkd.dtype).repeat(-(-keys // parts), 1)[:keys]
    counted_nkd = torch.cat([value_nkd, part_kp.expand(len(value_nkd), -1, -1)], -1)
    sums_nqd = counted_nkd.new_zeros(*low_nqd.shape[:2], width + parts)
    some = max(QUERIES_AT_ONCE, SCORES_AT_ONCE // keys)
    for n in torch.nonzero(highest_nq.amax(1) <= FURTHEST).flatten().tolist():
        for low_qd, sums_qd in zip(torch.split(low_nqd[n], some), torch.split(sums_nqd[n], some), strict=True):
            shares_qk = torch.ops.mkldnn._linear_pointwise(low_qd, one_nkd[n], None, "sigmoid", [], "none")
            torch.mm(shares_qk, counted_nkd[n], out=sums_qd)
    shares_nq1 = sums_nqd[..., width:].sum(-1, keepdim=True, dtype=torch.float32)
    seen_nqd = sums_nqd[..., :width] / shares_nq1
    lost = torch.nonzero(~(shares_nq1 >= LEAST_SHARES).all(1).flatten()).flatten()
    if len(lost):
        query_1nqd, key_1nkd, value_1nkd = (x[None, lost] for x in (query_nqd, key_nkd, value_nkd))
        seen_nqd[lost] = scaled_dot_product_attention(query_1nqd, key_1nkd, value_1nkd, scale=1.0)[0].float()
    return seen_nqd.view(query_baqd.shape)


_products_lock, _products_depth = Lock(), 0


@contextmanager
def _bfloat16_products_of_float32() -> Iterator[None]:
    """While this holds, torch multiplies float32 as bfloat16 and adds up in float32: exact for what was bfloat16.

    The switch is the process's: a product of float32 in another thread is rounded so for as long, a few milliseconds.
    """
    global _products_depth
    with _products_lock:
        _products_depth += 1
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _products_lock:
            _products_depth -= 1
            if not _products_depth:
                torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
