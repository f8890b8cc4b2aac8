"""Which processors multiply bfloat16 faster than float32, from what they say of themselves."""

import pytest
import torch

from controlnet.devices import has_fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "avx512_fp16", "fast"),
    [
        (False, False, False, False),  # AVX2 alone
        (False, True, False, True),  # Zen 4, Cooper Lake
        (True, True, True, True),  # Sapphire Rapids
        (False, True, True, False),  # the same behind a virtual machine without AMX
    ],
)
def test_bfloat16_is_fast_where_units_are_made_for_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, avx512_fp16: bool, fast: bool
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": avx512_fp16}, raising=False)
    assert has_fast_bfloat16(CPU) == fast
