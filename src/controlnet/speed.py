"""How a U-Net's layers compute where torch's own way is slow: the same numbers, but for rounding, sooner.

On CPUs: a convolution in float32 takes half the time with a quarter of its multiplications, one of few positions three
quarters to a sixth as one product, attention in bfloat16 half as two products (`attention.py`), a gated layer half
with its gate in the products; channels stay last; what both sides of guidance have in common is computed once.
Anywhere: the keys and values of a prompt are computed once for all steps. Where gradients are wanted or torch
compiles, torch's own way is taken.

Shapes: b batch, a heads, q queries, k keys, d width of a head, c channels, h w size, n positions; of products k inputs,
o outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers import AutoencoderKL, Transformer2DModel, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from controlnet.attention import attend, is_free, is_quick
from controlnet.winograd import convolve

MANY_POSITIONS, MANY_CHANNELS = 512, 128  # from which fewer multiplications outweigh the way to them

KeysAndValues = tuple[Tensor, Tensor]
# while prompts are heard once: (layer, its prompt's place in memory) -> the prompt, which thereby stays there; k and v
_heard: ContextVar[dict[tuple[int, int], tuple[Tensor, KeysAndValues]] | None] = ContextVar("heard", default=None)


def suit(unet: UNet2DConditionModel) -> None:
    """Let it compute as is fastest where it is: channels last, attention as `QuickAttention` has it.

    On two cores a float32 training step of the embedded base takes 0.40 s so and 0.45 s as opened (bfloat16: 0.29 s).
    """
    unet.to(memory_format=torch.channels_last)
    unet.set_attn_processor(QuickAttention())


def suit_vae(vae: AutoencoderKL) -> None:
    """Let its convolutions be quick ones; what comes in had better be channels last.

    Two cores with AVX2 decode 512x512 in 9.5 s, before in 16.
    """
    turn_convolutions(QuickConv2d, vae)


def turn_convolutions(kind: "type[QuickConv2d]", *models: nn.Module) -> None:
    """For good: what is a plain convolution in these models is of this kind from now on."""
    for model in models:
        for module in model.modules():
            if type(module) is nn.Conv2d:
                module.__class__ = kind


def compile_parts(*parts: nn.Module) -> None:
    """Let torch compile each of these on its first use: minutes, where there is a C++ compiler, then faster steps."""
    for part in parts:
        part.compile()


@contextmanager
def quick(models: Sequence[nn.Module]) -> Iterator[None]:
    """While this holds, the models' layers are quick ones, and those of attention compute the keys and values of a
    prompt once; weights and prompts must stay as they are."""
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
        query_bnc, scale = self._queries(attn, x_bnc)
        seen_bnc = attend(_heads(attn, query_bnc), *heard, scale).transpose(1, 2).flatten(2)
        projection, dropout = attn.to_out
        if seen_bnc.dtype == x_bnc.dtype or type(projection) is not nn.Linear:
            return dropout(projection(seen_bnc.to(x_bnc.dtype)))
        out_bnc = linear(seen_bnc, projection.weight.float(), projection.bias.float())
        return dropout(out_bnc.to(x_bnc.dtype))

    def _queries(self, attn: Attention, x_bnc: Tensor) -> tuple[Tensor, float]:
        """With what is left to scale them by: nothing where the product can, which saves a rounding."""
        if not is_quick(x_bnc) or type(attn.to_q) is not nn.Linear or attn.to_q.bias is not None:
            return attn.to_q(x_bnc), attn.scale
        nothing, x_nc = x_bnc.new_empty(1), x_bnc.flatten(0, 1)
        scaled_nc = torch.addmm(nothing, x_nc, attn.to_q.weight.T, beta=0, alpha=attn.scale)
        return scaled_nc.view(*x_bnc.shape[:2], -1), 1.0

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


class QuickTransformer(Transformer2DModel):
    """Leaves channels last: diffusers puts them first before or after its last layer, for the next to put them back."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        seen_bchw = hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        return (seen_bchw if self.use_linear_projection else self.proj_out(seen_bchw)) + residual


class QuickLayer(Attention):
    """Asks its processor at once: diffusers reads its signature first, at every call, as long as a small product."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **others: Any) -> Tensor:
        seen: Tensor = self.processor(self, hidden_states, encoder_hidden_states, **others)
        return seen


class QuickConv2d(nn.Conv2d):
    """A convolution with fewer multiplications, or one product where its weights outweigh what they are applied to.

    Where they do, torch spends most of its time on putting the weights in another order, at every call.
    """

    def forward(self, input: Tensor) -> Tensor:
        return once(self._way(input), input)

    def _way(self, x_bchw: Tensor) -> Callable[[Tensor], Tensor]:
        stock: Callable[[Tensor], Tensor] = super().forward
        is_single = x_bchw.dtype == torch.float32 and is_free(x_bchw) and not torch.is_autocast_enabled("cpu")
        if not (is_single or is_quick(x_bchw)) or self.stride != (1, 1) or self.dilation != (1, 1) or self.groups != 1:
            return stock
        positions = x_bchw.numel() // x_bchw.shape[1]
        match self.kernel_size, self.padding:
            case (3, 3), (1, 1):
                has_many = positions >= MANY_POSITIONS and min(self.in_channels, self.out_channels) >= MANY_CHANNELS
                if is_single and has_many:
                    return lambda x: convolve(x, self.weight, self.bias)
                return self._as_product if positions < self.out_channels else stock
            case (1, 1), (0, 0):
                return self._as_product if positions <= MANY_POSITIONS else stock
        return stock

    def _as_product(self, x_bchw: Tensor) -> Tensor:
        x_bhwc, weight_ok = x_bchw.permute(0, 2, 3, 1), as_matrix(self.weight)
        seen_bhwk = x_bhwc if self.kernel_size == (1, 1) else neighbours(x_bchw)
        out_no = times_large(seen_bhwk.reshape(-1, weight_ok.shape[1]), weight_ok, self.bias)
        return out_no.view(*x_bhwc.shape[:3], -1).permute(0, 3, 1, 2)


class QuickGEGLU(GEGLU):
    """A gated layer, h * gelu(g) of one product's halves, as two products that end with what follows them."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_quick(hidden_states) or type(self.proj) is not nn.Linear:
            return super().forward(hidden_states, *args, **kwargs)
        product = torch.ops.mkldnn._linear_pointwise
        (weight, gate_weight), (bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        gate = product(hidden_states, gate_weight, gate_bias, "gelu", [], "none")
        return product.binary(hidden_states, gate, weight, bias, "mul")


QUICK: dict[type[nn.Module], type[nn.Module]] = {
    Transformer2DModel: QuickTransformer,
    Attention: QuickLayer,
    nn.Conv2d: QuickConv2d,
    GEGLU: QuickGEGLU,
}


def as_matrix(weight: Tensor) -> Tensor:
    """Outputs by taps and channels, (o, 9c): a view of weights that are channels last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def times_large(x_nk: Tensor, weight_ok: Tensor, bias_o: Tensor | None) -> Tensor:
    """`linear(x, weight, bias)`; weights that are more than what they are applied to come first in float32.

    What is on the right is put in another order. 1,280 by 11,520, of 32: 10.2 -> 7.9 ms.
    """
    if x_nk.dtype != torch.float32 or bias_o is None or len(x_nk) >= len(weight_ok):
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
    if len(x) % 2 == 0 and is_free(x):
        half, other = x.chunk(2)
        if torch.equal(half, other):
            return torch.cat([compute(half)] * 2)
    return compute(x)


def _heads(attn: Attention, x_bnc: Tensor) -> Tensor:
    return x_bnc.reshape(*x_bnc.shape[:2], attn.heads, -1).transpose(1, 2)
