"""Tokenizers for files that carry none: where they are looked for, how each pads, and what is said where none is."""

import json
import shutil
from pathlib import Path

import pytest

import tiny_folders
from controlnet.checkpoints import tokenizer
from controlnet.checkpoints.base_file import base_to_ldm, load_base_file
from controlnet.checkpoints.tensor_file import write_tensors
from controlnet.checkpoints.text_encoders import TEXT_ENCODERS
from controlnet.checkpoints.tokenizer import find_tokenizers, packed
from controlnet.errors import UserError

CLIP, OPENCLIP = TEXT_ENCODERS["sdxl"]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with vocab.json and merges.txt alone."""
    tiny_folders.make_tokenizer(tmp_path, pad="<|endoftext|>")
    return tmp_path / "words"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(cache: Path, repository: str, folder: str, words: Path) -> None:
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123abc")
    shutil.copytree(words, home / "snapshots" / "0123abc" / folder, dirs_exist_ok=True)


def test_clip_is_padded_with_its_end_and_openclip_with_number_zero(words: Path):
    first, second = find_tokenizers(words, TEXT_ENCODERS["sdxl"])
    assert first.pad_token_id == first.eos_token_id != 0
    assert second.pad_token_id == 0
    [of_sd2] = find_tokenizers(words, TEXT_ENCODERS["sd2"])
    assert of_sd2.pad_token_id == 0


@pytest.mark.parametrize("given", ["words", "words/vocab.json", "base", "base/tokenizer"])
def test_a_tokenizer_is_found_in_what_the_user_gives(words: Path, tmp_path: Path, given: str):
    shutil.copytree(words, tmp_path / "base" / "tokenizer")
    [found] = find_tokenizers(tmp_path / given, TEXT_ENCODERS["sd1"])
    assert found("red").input_ids == find_tokenizers(words, TEXT_ENCODERS["sd1"])[0]("red").input_ids


@pytest.mark.parametrize(("given", "message"), [("nowhere", "no such folder"), ("empty", "nothing in it")])
def test_what_holds_no_tokenizer_is_refused(tmp_path: Path, given: str, message: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"tokenizer .*{given}: {message} .*expected a folder with tokenizer.json"):
        find_tokenizers(tmp_path / given, TEXT_ENCODERS["sd1"])


@pytest.mark.parametrize(("repository", "folder"), tokenizer.KNOWN)
def test_every_known_repository_in_the_hubs_cache_serves_every_family(
    words: Path, cache: Path, repository: str, folder: str
):
    put_in_cache(cache, repository, folder, words)
    assert [len(find_tokenizers(None, encoders)) for encoders in TEXT_ENCODERS.values()] == [1, 1, 2]


def test_a_repository_that_was_fetched_without_its_tokenizer_is_passed_by(words: Path, cache: Path, tmp_path: Path):
    (tmp_path / "else").mkdir()
    put_in_cache(cache, *tokenizer.KNOWN[0], tmp_path / "else")
    put_in_cache(cache, *tokenizer.KNOWN[1], words)
    assert find_tokenizers(None, [CLIP])[0].pad_token == "<|endoftext|>"


def test_where_there_is_none_it_is_said_what_to_put_where(cache: Path):
    with pytest.raises(UserError, match=f"carries no tokenizer.*{cache}.*--tokenizer FOLDER.*hf download openai/clip"):
        find_tokenizers(None, [CLIP])


def test_what_is_packed_with_a_file_is_the_same_tokenizer(words: Path, cache: Path):
    given = find_tokenizers(words, [OPENCLIP])
    contents = packed(given)
    assert set(contents[0]) == {"tokenizer.json", "tokenizer_config.json"}
    [found] = find_tokenizers(None, [OPENCLIP], contents)
    assert found.get_vocab() == given[0].get_vocab()
    assert found("red bee").input_ids == given[0]("red bee").input_ids
    assert (found.pad_token, found.model_max_length) == ("!", 77)


def test_how_a_tokenizer_was_last_used_is_not_written_with_it(words: Path):
    used = tokenizer.load_tokenizer(words)
    used(["red"], padding="max_length", truncation=True, max_length=77)
    written = json.loads(tokenizer._packed(used)["tokenizer.json"])
    assert (written["truncation"], written["padding"]) == (None, None)


def test_what_the_user_gives_comes_before_what_is_packed(words: Path):
    [found] = find_tokenizers(words, [CLIP], [{"tokenizer.json": "broken"}])
    assert found.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("contents", [{}, {"tokenizer.json": "{", "tokenizer_config.json": "{}"}])
def test_a_broken_tokenizer_in_a_file_is_an_error(contents: dict[str, str]):
    with pytest.raises(UserError, match="cannot be read as CLIPTokenizer"):
        find_tokenizers(None, [CLIP], [contents])


def test_clips_own_vocabulary_is_not_packed(words: Path, monkeypatch: pytest.MonkeyPatch):
    given = find_tokenizers(words, [CLIP])
    assert packed(given) != []
    monkeypatch.setattr(tokenizer, "CLIP_VOCABULARY", len(given[0]))
    assert packed(given) == []


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path):
    parts = tiny_folders.make_true_parts(tmp_path, "sd1")
    path = tmp_path / "base.safetensors"
    write_tensors(path, base_to_ldm(parts))
    vocabulary = tmp_path / "words" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace('"re": 54', '"re": 54, "bee</w>": 58'))
    with pytest.raises(UserError, match=r"knows 58 tokens, the tokenizer 59; .*--tokenizer"):
        load_base_file(path, None, tokenizer=tmp_path / "words")
