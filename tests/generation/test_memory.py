"""What is said of memory: sizes, the ways, the order in which a limit tries them."""

import pytest

from controlnet.errors import UserError
from controlnet.generation.memory import MODES, PLENTY, Memory, MemoryOptions, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("7.5 gb", 75 * 10**8), ("8GiB", 2**33), ("900MB", 9 * 10**8), ("5 B", 5)],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 bytes", "1e9B", ""])
def test_what_is_no_size_is_an_error(text: str):
    with pytest.raises(UserError, match="expected a size such as 8GB"):
        parse_bytes(text)
    assert MemoryOptions(memory_limit=text).problems()


def test_without_a_limit_there_is_one_mode_and_it_is_what_is_said():
    assert MemoryOptions().modes() == [PLENTY]
    assert MemoryOptions(offload="blocks", vae="tiled", attention="sliced").modes() == [
        Memory("blocks", "tiled", "sliced")
    ]


def test_a_limit_tries_all_modes_that_agree_with_what_is_said():
    assert MemoryOptions(memory_limit="8GB").modes() == list(MODES)
    modes = MemoryOptions(memory_limit="8GB", vae="whole", attention="sdpa").modes()
    assert [mode.offload for mode in modes] == ["none", "models", "blocks"]
    assert {(mode.vae, mode.attention) for mode in modes} == {("whole", "sdpa")}


def test_only_the_last_mode_of_a_limit_may_change_a_shade():
    assert [mode.vae == "tiled" for mode in MODES] == [False] * (len(MODES) - 1) + [True]


def test_models_wait_in_main_memory_only_where_memory_is_saved():
    assert not MemoryOptions(offload="none", vae="tiled").is_saving
    assert MemoryOptions(offload="models").is_saving
    assert MemoryOptions(memory_limit="8GB").is_saving
