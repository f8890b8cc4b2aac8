"""Prompts with weights, and what the original's apps add to every prompt.

(word) counts 1.1 times, (word:1.3) 1.3 times, [word] 1/1.1 times, and they nest: A1111's web UI, whose rule this is,
multiplies each token's row of the context by its weight and then restores the mean of each chunk. \\( \\) \\[ \\] are
plain brackets. A prompt without brackets is heard as it is, bit for bit. What follows the word BREAK begins a chunk of
its own, in brackets too, where A1111 takes it for a word.

Shapes: b prompts, k chunks, t tokens of a chunk, d token width.
"""

import re
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from controlnet.base import NEW_CHUNK, Base, chunked, tokenize
from controlnet.control import Prompt

EMPHASIS = 1.1  # of a pair of brackets; A1111's
PIECE = re.compile(r"\\[\\()\[\]]|[(\[]|:\s*([+-]?\d*\.?\d+)\s*\)|[)\]]|[^\\()\[\]:]+|[\\:]")

BREAK = re.compile(r"\s*\bBREAK\b\s*")

Weighted = list[tuple[str, float]]


class Preset(TypedDict):
    """Keywords of `generate`."""

    added_prompt: str
    negative_prompt: str


PRESETS: dict[str, Preset] = {
    "original": {
        "added_prompt": "best quality, extremely detailed",
        "negative_prompt": "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, "
        "cropped, worst quality, low quality",
    },
    "original-1.1": {
        "added_prompt": "best quality",
        "negative_prompt": "lowres, bad anatomy, bad hands, cropped, worst quality",
    },
}


def parse(text: str) -> Weighted:
    """The text in pieces with their weights; neighbours differ. What is never closed counts to the end."""
    pieces: Weighted = []
    opened: list[tuple[str, int]] = []  # bracket, number of the first piece inside

    def multiply(first: int, factor: float) -> None:
        pieces[first:] = [(piece, weight * factor) for piece, weight in pieces[first:]]

    for found in PIECE.finditer(BREAK.sub(NEW_CHUNK, text)):
        token, weight = found[0], found[1]
        last = opened[-1][0] if opened else ""
        if token in ("(", "["):
            opened.append((token, len(pieces)))
        elif weight is not None and last == "(":
            multiply(opened.pop()[1], float(weight))
        elif token + last in (")(", "]["):
            multiply(opened.pop()[1], EMPHASIS if token == ")" else 1 / EMPHASIS)
        else:
            pieces.append((token[1:] if token[0] == "\\" and len(token) == 2 else token, 1.0))
    for bracket, first in opened:
        multiply(first, EMPHASIS if bracket == "(" else 1 / EMPHASIS)
    return _merged(pieces)


def plain(text: str) -> str:
    """The words that the text encoder reads; pieces of other weights are words of their own."""
    return _joined(parse(text))


def hear(base: Base, texts: Sequence[str], clip_skip: int, size_hw: tuple[int, int]) -> Prompt:
    """What the base hears of prompts with weights; `Base.encode_prompts` otherwise."""
    parsed = [parse(text) for text in texts]
    heard = base.encode_prompts([_joined(pieces) for pieces in parsed], clip_skip, size_hw)
    if all(weight == 1 for pieces in parsed for _, weight in pieces):
        return heard
    parts = torch.split(heard.context_btd, [encoder.config.hidden_size for encoder in base.text_encoders], dim=-1)
    weights_bkt = _token_weights(base, parsed)
    return Prompt(torch.cat([_weighed(part_btd, weights_bkt) for part_btd in parts], dim=-1), heard.added)


def _weighed(context_btd: Tensor, weights_bkt: Tensor) -> Tensor:
    """Every token times its weight, the mean of its chunk restored; in float32, chunks without weights as they are."""
    before_bktd = torch.unflatten(context_btd, 1, weights_bkt.shape[1:])
    after_bktd = before_bktd.float() * weights_bkt[..., None]
    restored_bktd = after_bktd * (
        before_bktd.float().mean((2, 3), keepdim=True) / after_bktd.mean((2, 3), keepdim=True)
    )
    is_plain_bk11 = (weights_bkt == 1).all(-1)[..., None, None]
    return torch.where(is_plain_bk11, before_bktd, restored_bktd.to(context_btd.dtype)).flatten(1, 2)


def _token_weights(base: Base, texts: Sequence[Weighted]) -> Tensor:
    """(b, k, t), 1 for start, end and padding. Both tokenizers of SDXL cut alike, so one set serves both encoders."""
    tokenizer = base.tokenizers[0]
    chunks, length = tokenize(tokenizer, [_joined(pieces) for pieces in texts]).shape[1:]
    rows = torch.ones(len(texts), chunks, length)
    for row_kt, pieces in zip(rows, texts, strict=True):
        parted: list[list[float]] = [[]]
        for piece, weight in pieces:
            for number, text in enumerate(piece.split(NEW_CHUNK)):
                parted += [[]] if number else []
                count = len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
                parted[-1] += [weight] * count
        own = [chunk for weights in parted for chunk in chunked(weights, length - 2)]
        for row_t, chunk in zip(row_kt, own, strict=False):  # the others are another prompt's
            row_t[1 : 1 + len(chunk)] = torch.tensor(chunk)
    return rows.to(base.device)


def _joined(pieces: Weighted) -> str:
    return " ".join(piece for piece, _ in pieces)


def _merged(pieces: Weighted) -> Weighted:
    """Neighbours of one weight as one piece."""
    merged: Weighted = []
    for piece, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + piece, weight)
        else:
            merged.append((piece, weight))
    return merged
