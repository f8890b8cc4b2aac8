"""Weights in prompts: the syntax of the field, and what it does to the context."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_folders
from controlnet.base import Base, open_base
from controlnet.generation.prompts import PRESETS, hear, parse, plain

LONG = "a red bee " * 30  # two chunks


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    home = tmp_path_factory.mktemp("bases")
    return {name: open_base(tiny_folders.save_tiny_base(home / name, name), "cpu") for name in ("sd1", "sdxl")}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a red bee", [("a red bee", 1)]),
        ("a (red) bee", [("a ", 1), ("red", 1.1), (" bee", 1)]),
        ("a [red] bee", [("a ", 1), ("red", 1 / 1.1), (" bee", 1)]),
        ("a (red:1.3) bee", [("a ", 1), ("red", 1.3), (" bee", 1)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(a (red:2) bee)", [("a ", 1.1), ("red", 2.2), (" bee", 1.1)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        (r"\(red\) \[bee\] \\", [("(red) [bee] \\", 1)]),
        ("red: bee", [("red: bee", 1)]),
        ("red:1.3", [("red:1.3", 1)]),
        ("red:1.3)", [("red:1.3)", 1)]),
        ("a) red] bee", [("a) red] bee", 1)]),
        ("a (red bee", [("a ", 1), ("red bee", 1.1)]),
        ("a [red (bee", [("a ", 1), ("red ", 1 / 1.1), ("bee", 1.1 / 1.1)]),
        ("(red:1)(bee:1)", [("redbee", 1)]),
    ],
)
def test_a_text_falls_into_pieces_with_weights(text: str, pieces: list[tuple[str, float]]):
    found = parse(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(st.text(st.sampled_from("ab ,.-:'13"), max_size=30))
def test_a_text_without_brackets_is_read_as_it_is(text: str):
    assert plain(text) == text


@given(st.text(st.sampled_from("ab()[]\\:1."), max_size=30))
def test_every_text_has_pieces_and_no_piece_has_an_open_bracket_of_weight(text: str):
    assert all(piece for piece, _ in parse(text))


def test_without_weights_the_context_is_the_bases_own_bit_for_bit(bases: dict[str, Base]):
    for base in bases.values():
        heard, expected = hear(base, ["red", LONG], 1, (64, 64)), base.encode_prompts(["red", LONG], 1, (64, 64))
        assert torch.equal(heard.context_btd, expected.context_btd)


def test_a_weighted_token_is_multiplied_and_the_mean_of_its_chunk_restored(bases: dict[str, Base]):
    base = bases["sd1"]
    heard = hear(base, ["a (red:1.5) bee"], 1, (64, 64)).context_btd[0]
    plain_td = base.encode_prompts(["a red bee"]).context_btd[0]
    expected = plain_td.clone()
    expected[2] *= 1.5  # after the start and "a"
    expected *= plain_td.mean() / expected.mean()
    torch.testing.assert_close(heard, expected)
    assert not torch.equal(heard, plain_td)


def test_only_the_chunk_that_has_weights_changes(bases: dict[str, Base]):
    base = bases["sd1"]
    heard = hear(base, [LONG + "(bee:1.5)"], 1, (64, 64)).context_btd[0]
    plain_td = base.encode_prompts([LONG + "bee"]).context_btd[0]
    assert torch.equal(heard[:77], plain_td[:77])
    assert not torch.allclose(heard[77:], plain_td[77:])


def test_weights_of_one_prompt_leave_the_others_of_the_batch_alone(bases: dict[str, Base]):
    base = bases["sd1"]
    together = hear(base, ["red", "a (red:1.5) bee"], 1, (64, 64)).context_btd
    assert torch.equal(together[:1], base.encode_prompts(["red", "a red bee"]).context_btd[:1])
    torch.testing.assert_close(together[1:], hear(base, ["a (red:1.5) bee"], 1, (64, 64)).context_btd)


def test_each_text_encoder_of_sdxl_keeps_its_own_mean_and_the_pooled_text_stays(bases: dict[str, Base]):
    base = bases["sdxl"]
    heard, before = hear(base, ["a (red:1.5) bee"], 1, (64, 64)), base.encode_prompts(["a red bee"], 1, (64, 64))
    width = base.text_encoders[0].config.hidden_size
    for part in (slice(None, width), slice(width, None)):
        torch.testing.assert_close(heard.context_btd[..., part].mean(), before.context_btd[..., part].mean())
    assert not torch.allclose(heard.context_btd, before.context_btd)
    assert heard.added is not None
    assert before.added is not None
    assert torch.equal(heard.added["text_embeds"], before.added["text_embeds"])


def test_presets_are_keywords_of_generate():
    assert PRESETS["original"]["added_prompt"] == "best quality, extremely detailed"
    assert all(preset.keys() == {"added_prompt", "negative_prompt"} for preset in PRESETS.values())


@pytest.mark.parametrize("text", ["a BREAK bee", "a\nBREAK\nbee", "aBREAK bee BREAKs"])
def test_only_the_word_break_begins_a_chunk(bases: dict[str, Base], text: str):
    chunks = 2 if " BREAK " in text or "\nBREAK\n" in text else 1
    assert hear(bases["sd1"], [text], 1, (64, 64)).context_btd.shape[1] == 77 * chunks


def test_what_break_parts_is_heard_apart_with_its_own_weights(bases: dict[str, Base]):
    for base in bases.values():
        parted = hear(base, ["a (red:1.5) BREAK [bee]", "a bee"], 1, (64, 64)).context_btd
        alone = [hear(base, [text], 1, (64, 64)).context_btd[0] for text in ("a (red:1.5)", "[bee]", "a bee", "")]
        torch.testing.assert_close(parted[0], torch.cat(alone[:2]))
        torch.testing.assert_close(parted[1], torch.cat(alone[2:]))


def test_a_long_part_takes_chunks_of_its_own(bases: dict[str, Base]):
    heard = hear(bases["sd1"], [f"{LONG} BREAK (bee:1.5)"], 1, (64, 64)).context_btd[0]
    alone = [hear(bases["sd1"], [text], 1, (64, 64)).context_btd[0] for text in (LONG, "(bee:1.5)")]
    torch.testing.assert_close(heard, torch.cat(alone))


def test_break_is_a_word_where_weights_are_text(bases: dict[str, Base]):
    assert bases["sd1"].encode_prompts(["a BREAK bee"]).context_btd.shape[1] == 77
