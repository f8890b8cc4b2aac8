"""How a U-Net's layers compute where torch's own way is slow: the same numbers, but for rounding, sooner.

On CPUs: a convolution in float32 takes half the time with a quarter of its multiplications, one of few positions three
quarters to a sixth as one product, attention in bfloat16 half as plain matrix products where there are tiles for them
(AMX), a gated layer half with its gate in the products; what both sides of guidance have in common is computed once.
Anywhere: the keys and values of a prompt are computed once for all steps. Where gradients are wanted or torch compiles,
torch's own way is taken.

Shapes: b batch, a heads, q queries, k keys, d width of a head, c channels, h w size, n positions; of products k inputs,
o outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from controlnet.devices import has_fast_bfloat16
from controlnet.winograd import convolve

FEW_SCORES = 2**16  # of a head and picture, 16x16 by 16x16: for more, torch's fused attention is faster
MANY_SCORES = 2**22  # of a head and picture, 64x64 by 32x32: for more, products are faster than torch's in bfloat16 too
SCORES_AT_ONCE = 2**19  # of a head and picture; with AMX, more of them are faster head by head, and no torch's is
QUERIES = 128  # of a chunk: its scores, of 4,096 keys, take 2 MB
MANY_POSITIONS, MANY_CHANNELS = 512, 128  # from which fewer multiplications outweigh the way to them
VECTOR = 16  # values of a head: as many columns as a product computes at once, a third sooner than 40

KeysAndValues = tuple[Tensor, Tensor]
# while prompts are heard once: (layer, its prompt's place in memory) -> the prompt, which thereby stays there; k and v
_heard: ContextVar[dict[tuple[int, int], tuple[Tensor, KeysAndValues]] | None] = ContextVar("heard", default=None)


def suit(unet: UNet2DConditionModel) -> None:
    """Let it compute as is fastest where it is: channels last, attention by this file.

    On two cores a float32 training step of the embedded base takes 0.40 s so and 0.45 s as opened (bfloat16: 0.29 s).
    """
    unet.to(memory_format=torch.channels_last)
    unet.set_attn_processor(QuickAttention())


def suit_vae(vae: AutoencoderKL) -> None:
    """Let its convolutions be quick ones, for good; what comes in had better be channels last.

    Two cores with AVX2 decode 512x512 in 9.5 s, before in 16.
    """
    for module in vae.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = QuickConv2d


def compile_parts(*parts: nn.Module) -> None:
    """Let torch compile each of these on its first use: minutes, where there is a C++ compiler, then faster steps."""
    for part in parts:
        part.compile()


@contextmanager
def quick(models: Sequence[nn.Module]) -> Iterator[None]:
    """While this holds, the models' convolutions and gated layers are quick ones, and their attention layers compute
    the keys and values of a prompt once; weights and prompts must stay as they are."""
    found = [(it, type(it)) for model in models for it in model.modules() if type(it) in QUICK]
    token = _heard.set({})
    try:
        for module, stock in found:
            module.__class__ = QUICK[stock]
        yield
    finally:
        for module, stock in found:
            module.__class__ = stock
        _heard.reset(token)


class QuickAttention:
    """What the attention layers of a Stable Diffusion U-Net compute, in place of diffusers' processors."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **masks: None
    ) -> Tensor:
        assert not any(masks.values())  # no U-Net of the families that we open masks its attention
        if encoder_hidden_states is None:
            return once(lambda x_bnc: self._attend(attn, x_bnc, self._keys_and_values(attn, x_bnc)), hidden_states)
        return self._attend(attn, hidden_states, self._of_prompt(attn, encoder_hidden_states))

    def _attend(self, attn: Attention, x_bnc: Tensor, heard: KeysAndValues) -> Tensor:
        seen_baqd = attend(_heads(attn, attn.to_q(x_bnc)), *heard, attn.scale)
        projection, dropout = attn.to_out
        return dropout(projection(seen_baqd.transpose(1, 2).flatten(2)))

    def _of_prompt(self, attn: Attention, context_btd: Tensor) -> KeysAndValues:
        known = _heard.get()
        if known is None:
            return self._keys_and_values(attn, context_btd)
        key = id(attn), id(context_btd)
        if key not in known:
            known[key] = context_btd, self._keys_and_values(attn, context_btd)
        return known[key][1]

    def _keys_and_values(self, attn: Attention, x_bnc: Tensor) -> KeysAndValues:
        return _heads(attn, attn.to_k(x_bnc)), _heads(attn, attn.to_v(x_bnc))


class QuickConv2d(nn.Conv2d):
    """A convolution with fewer multiplications, or one product where its weights outweigh what they are applied to.

    Where they do, torch spends most of its time on putting the weights in another order, at every call.
    """

    def forward(self, input: Tensor) -> Tensor:
        return once(self._way(input), input)

    def _way(self, x_bchw: Tensor) -> Callable[[Tensor], Tensor]:
        stock: Callable[[Tensor], Tensor] = super().forward
        is_plain = self.stride == self.padding == self.dilation == (1, 1) and self.groups == 1
        if self.kernel_size != (3, 3) or not is_plain:
            return stock
        positions = x_bchw.numel() // x_bchw.shape[1]
        is_single = x_bchw.dtype == torch.float32 and _is_free(x_bchw) and not torch.is_autocast_enabled("cpu")
        if is_single and positions >= MANY_POSITIONS and min(self.in_channels, self.out_channels) >= MANY_CHANNELS:
            return lambda x: convolve(x, self.weight, self.bias)
        if (is_single or is_quick(x_bchw)) and positions < self.out_channels:
            return self._as_product
        return stock

    def _as_product(self, x_bchw: Tensor) -> Tensor:
        around_bhwkc = neighbours(x_bchw)
        weight_ok = as_matrix(self.weight)
        out_no = times_large(around_bhwkc.reshape(-1, weight_ok.shape[1]), weight_ok, self.bias)
        return out_no.view(*around_bhwkc.shape[:3], -1).permute(0, 3, 1, 2)


class QuickGEGLU(GEGLU):
    """A gated layer, h * gelu(g) of one product's halves, as two products that end with what follows them."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_quick(hidden_states) or type(self.proj) is not nn.Linear:
            return super().forward(hidden_states, *args, **kwargs)
        product = torch.ops.mkldnn._linear_pointwise
        (weight, gate_weight), (bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        gate = product(hidden_states, gate_weight, gate_bias, "gelu", [], "none")
        return product.binary(hidden_states, gate, weight, bias, "mul")


QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuickConv2d, GEGLU: QuickGEGLU}


def as_matrix(weight: Tensor) -> Tensor:
    """Outputs by taps and channels, (o, 9c): a view of weights that are channels last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def times_large(x_nk: Tensor, weight_ok: Tensor, bias_o: Tensor | None) -> Tensor:
    """`linear(x, weight, bias)` where the weights are far more than what they are applied to.

    In float32 they come first: what is on the right is put in another order. 1,280 by 11,520, of 32: 10.2 -> 7.9 ms.
    """
    if x_nk.dtype != torch.float32 or bias_o is None:
        return linear(x_nk, weight_ok, bias_o)
    return torch.addmm(bias_o[:, None], weight_ok, x_nk.T).T.contiguous()


def neighbours(x_bchw: Tensor, stride: int = 1) -> Tensor:
    """What nine taps see from each position of the output (b, h, w, 3, 3, c): a view of a copy framed by a zero."""
    framed_bhwc = pad(x_bchw.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    return framed_bhwc.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)


def once(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`compute(x)` of a batch, of whose halves only one is computed if they are equal.

    Those of both sides of guidance are until they hear their prompts: first convolution, first block, first
    self-attention, of the base and of each control. Only on a CPU, where to compare them costs next to nothing.
    """
    if len(x) % 2 == 0 and _is_free(x):
        half, other = x.chunk(2)
        if torch.equal(half, other):
            return torch.cat([compute(half)] * 2)
    return compute(x)


def attend(query_baqd: Tensor, key_bakd: Tensor, value_bakd: Tensor, scale: float) -> Tensor:
    """Attention (b, a, q, d) in the way that is fastest for its shape, precision and device."""
    scores = query_baqd.shape[2] * key_bakd.shape[2]
    if is_quick(query_baqd):
        few, many = (SCORES_AT_ONCE, SCORES_AT_ONCE) if has_tiles() else (FEW_SCORES, MANY_SCORES)
        if scores <= few or scores > many:
            with _bfloat16_products_of_float32():
                way = _precisely_at_once if scores <= few else _precisely_in_chunks
                return way(query_baqd, key_bakd, value_bakd, scale)
    if query_baqd.device.type == "cpu" and scores <= FEW_SCORES:
        return _at_once(query_baqd, key_bakd, value_bakd, scale)
    return scaled_dot_product_attention(query_baqd, key_bakd, value_bakd, scale=scale)


def is_quick(x: Tensor) -> bool:
    """Whether `x` is in bfloat16 on a CPU that is fast at it, and nobody wants gradients or compiles."""
    can_choose = hasattr(torch.backends.mkldnn, "matmul")  # since torch 2.9
    return x.dtype == torch.bfloat16 and _is_free(x) and can_choose and has_fast_bfloat16(x.device)


def has_tiles() -> bool:
    """Whether this processor multiplies float32 as bfloat16, in tiles (AMX): elsewhere oneDNN does not round it."""
    return torch.cpu._is_amx_tile_supported()


def _is_free(x: Tensor) -> bool:
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


def _precisely_in_chunks(query_baqd: Tensor, key_bakd: Tensor, value_bakd: Tensor, scale: float) -> Tensor:
    """A head for each thread, some queries at a time, so that their scores stay in the caches."""
    seen_baqd = torch.empty_like(query_baqd, memory_format=torch.contiguous_format)
    heads, width = torch.get_num_threads(), query_baqd.shape[3]
    query_nqd, key_nkd = (_in_rows(x, torch.float32) for x in (query_baqd, key_bakd))
    value_nkd = pad(_in_rows(value_bakd), (0, -width % VECTOR))
    parts = [torch.split(x, heads) for x in (query_nqd, key_nkd, value_nkd, seen_baqd.flatten(0, 1))]
    for query, key, value, seen in zip(*parts, strict=True):
        scores_nqk = query.new_empty(len(query), QUERIES, key.shape[1])
        shares_nqk = value.new_empty(scores_nqk.shape)
        for chunk_nqd, into_nqd in zip(query.split(QUERIES, 1), seen.split(QUERIES, 1), strict=True):
            some_nqk, some_shares_nqk = (x[:, : chunk_nqd.shape[1]] for x in (scores_nqk, shares_nqk))
            torch.baddbmm(some_nqk, chunk_nqd, key.transpose(1, 2), beta=0, alpha=scale, out=some_nqk)
            some_shares_nqk.copy_(torch.softmax(some_nqk, -1, out=some_nqk))
            into_nqd.copy_(torch.bmm(some_shares_nqk, value)[..., :width])
    return seen_baqd


def _in_rows(x_band: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """All heads of all pictures (b a, n, d), laid out and converted in one go."""
    return x_band.to(dtype or x_band.dtype, memory_format=torch.contiguous_format).flatten(0, 1)


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


def _heads(attn: Attention, x_bnc: Tensor) -> Tensor:
    return x_bnc.reshape(*x_bnc.shape[:2], attn.heads, -1).transpose(1, 2)
