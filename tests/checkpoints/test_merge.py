"""Controls added up: the arithmetic of expressions, and of weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from checkpoints.made import METADATA, control_for
from controlnet.checkpoints.control_formats import ControlFile, open_control, to_names, write_control
from controlnet.checkpoints.merge import BLOCKS, merge, parse
from controlnet.cli.main import run
from controlnet.errors import UserError


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate("abc"):
        write_control(home / f"{name}.safetensors", control_for("sd1", seed).state_dict(), METADATA, "controlnet")
    return {name: home / f"{name}.safetensors" for name in "abc"}


@pytest.fixture(scope="module")
def files(paths) -> dict[str, ControlFile]:
    return {name: open_control(path) for name, path in paths.items()}


@pytest.mark.parametrize(
    ("expression", "weights"),
    [
        ("a", {"a": 1}),
        ("0.6*a + 0.4*b", {"a": 0.6, "b": 0.4}),
        ("a + (b - c)", {"a": 1, "b": 1, "c": -1}),
        ("a - 2*(b - c)", {"a": 1, "b": -2, "c": 2}),
        ("(a + b)/2", {"a": 0.5, "b": 0.5}),
        ("-a*3 + +a", {"a": -2}),
        ("2*3*a - a*1e-1", {"a": 5.9}),
        ("a + 1 - 1", {"a": 1}),
        (" a\t+ b ", {"a": 1, "b": 1}),
    ],
)
def test_an_expression_is_a_weight_for_each_name(expression, weights):
    assert parse(expression) == pytest.approx(weights)


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "",
            "a +",
            "a*b",
            "a/b",
            "1/a",
            "a/0",
            "3",
            "a + 1",
            "a**2",
            "a.b",
            "a[0]",
            "f(a)",
            "a if b else c",
            "lambda: a",
        ),
        *(
            "__import__('os')",
            "'a'",
            "True*a",
            "1j*a",
            "1e999*a",
            "a; b",
            "a = b",
            "a @ b",
            "~a",
            "[a]",
            "(" * 500 + "a",
        ),
    ],
)
def test_whatever_is_no_sum_is_refused(expression):
    with pytest.raises(UserError, match="expected"):
        parse(expression)


weighted = st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9), min_size=1)


@given(weighted, weighted, st.integers(-5, 5))
def test_a_sum_of_sums_is_the_sum_of_their_weights(first, second, factor):
    def text(weights: dict[str, int]) -> str:
        return " + ".join(f"{weight}*{name}" for name, weight in weights.items())

    expected = {name: first.get(name, 0) - factor * second.get(name, 0) for name in first | second}
    assert parse(f"({text(first)}) - {factor}*({text(second)})") == expected


def test_the_weights_of_a_merged_control_are_the_sums_of_the_weights(files):
    merged = merge("0.6*a + 0.4*b - c", files)
    a, b, c = (files[name].state for name in "abc")
    assert merged.changed == len(a) == len(merged.state)
    for name in a:
        assert torch.allclose(merged.state[name], 0.6 * a[name] + 0.4 * b[name] - c[name], atol=1e-6), name


def test_adding_and_taking_away_the_same_changes_nothing_but_rounding(files):
    merged = merge("a + (b - c) + (c - b)", files).state
    assert max((merged[name] - tensor).abs().max().item() for name, tensor in files["a"].state.items()) < 1e-6


@torch.no_grad()
def test_what_a_control_says_is_linear_in_its_zero_convolutions(files):
    from controlnet.control import ControlNet

    merged = merge("0.5*a", {"a": files["a"]}, layers=["zero"])
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    said = []
    for state in (files["a"].state, merged.state):
        control = ControlNet.from_base(tiny.unet("sd1"))
        control.load_state_dict(state)
        said.append(control(latent, timestep, prompt, control.encode_hint(hint)))
    assert torch.allclose(0.5 * said[0].middle, said[1].middle, atol=1e-5)
    assert torch.allclose(0.5 * said[0].skips[3], said[1].skips[3], atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "begins"),
    [
        ("hint", "hint_encoder."),
        ("middle", "encoder.mid_block."),
        ("down.2", "encoder.down_blocks.2."),
        ("zero.11", "zero_convs.11."),
        ("zero.1", "zero_convs.1."),
        ("zero.middle", "zero_conv_middle."),
        ("encoder.conv_in.*", "encoder.conv_in."),
    ],
)
def test_only_chosen_blocks_are_taken(files, layer, begins):
    merged = merge("b", {"a": files["a"], "b": files["b"]}, layers=[layer])
    taken = {name for name, tensor in merged.state.items() if torch.equal(tensor, files["b"].state[name])}
    assert taken == {name for name in merged.state if name.startswith(begins)}
    assert merged.changed == len(taken) > 0
    rest = merged.state.keys() - taken
    assert all(torch.equal(merged.state[name], files["a"].state[name]) for name in rest)


def test_the_blocks_are_all_of_a_control_and_share_nothing(files):
    whole = [block for block in BLOCKS if "." not in block]
    chosen = [merge("2*a", {"a": files["a"]}, layers=[block]).changed for block in whole]
    assert sum(chosen) == len(files["a"].state)


def test_a_block_that_is_not_there_is_refused(files):
    with pytest.raises(UserError, match="--layers down.7"):
        merge("a + b", {"a": files["a"], "b": files["b"]}, layers=["down.7"])


@pytest.mark.parametrize(("expression", "said"), [("a + d", "no file for d"), ("a", "b does not occur in it")])
def test_names_and_files_must_be_the_same(files, expression, said):
    with pytest.raises(UserError, match=said):
        merge(expression, {"a": files["a"], "b": files["b"]})


def test_controls_of_unlike_hints_or_families_do_not_add_up(files):
    odd = replace(files["b"], metadata=replace(METADATA, channel_order="BGR"))
    with pytest.raises(UserError, match="channel order RGB and BGR"):
        merge("a + b", {"a": files["a"], "b": odd})


def test_the_metadata_say_how_it_came_about(files):
    depth = replace(files["b"], metadata=replace(METADATA, condition="depth", polarity="near is light"))
    metadata = merge("a + b", {"a": files["a"], "b": depth}, layers=["hint"]).metadata
    assert metadata.condition == "canny + depth"
    assert metadata.polarity == "unknown"
    assert metadata.training == {
        "merged": "a + b",
        "files": {"a": "a.safetensors", "b": "b.safetensors"},
        "layers": ["hint"],
    }


def test_the_command_takes_controls_of_any_format(paths, files, tmp_path):
    write_control(tmp_path / "b.pth", files["b"].state, METADATA, "ldm")
    out = tmp_path / "merged"
    assert run(["merge", "0.6*a + 0.4*b", f"a={paths['a']}", f"b={tmp_path / 'b.pth'}", "--out", str(out)]) == 0
    expected = merge("0.6*a + 0.4*b", {name: files[name] for name in "ab"})
    assert to_names(open_control(out).state, "ldm").keys() == to_names(expected.state, "ldm").keys()
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in open_control(out).state.items())


def test_a_half_precision_first_file_makes_a_half_precision_sum(files, tmp_path):
    write_control(tmp_path / "half.safetensors", files["a"].state, METADATA, "controlnet", torch.float16)
    merged = merge("h + b", {"h": open_control(tmp_path / "half.safetensors"), "b": files["b"]})
    assert {tensor.dtype for tensor in merged.state.values()} == {torch.float16}


@pytest.mark.parametrize("controls", [[], ["a"], ["=x"], ["a="], ["a=x", "a=y"]])
def test_files_without_a_name_each_are_exit_2(controls, tmp_path, capsys):
    assert run(["merge", "a", *controls, "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "expected NAME=FILE" in capsys.readouterr().err.replace("\n", " ")
