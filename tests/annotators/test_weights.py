"""Weights are found in the folder given, then in the hub's cache, and verified; else the remedy is said."""

import hashlib
import re
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation

from controlnet.annotators import weights
from controlnet.annotators.weights import Weights, find, find_model, load_model, load_network
from controlnet.errors import UserError

NETWORK = nn.Linear(3, 2)
PUBLISHED = weights.WEIGHTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a pickled file and an empty cache of the hub; the table knows both."""
    path = tmp_path / "weights"
    path.mkdir()
    torch.save(NETWORK.state_dict(), path / "linear.pth")
    table = {
        "linear": Weights("someone/linear", "linear.pth", "MIT", size=1_900_000),
        "text": Weights("someone/text", None, "MIT"),
        "academic": Weights("someone/linear", "linear.pth", "academic use only", is_commercial=False),
    }
    monkeypatch.setattr(weights, "WEIGHTS", table)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return path


def set_hash(monkeypatch, name: str, sha256: str) -> None:
    monkeypatch.setitem(weights.WEIGHTS, name, replace(weights.WEIGHTS[name], sha256=sha256))


def put_into_cache(cache, repository: str, file: str, content: bytes, revision: str = "main") -> None:
    """As the hub's client lays its cache out."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text("abc")
    (root / "snapshots" / "abc" / file).write_bytes(content)


def test_a_file_is_found_in_the_folder_alone_or_under_its_repository(folder):
    assert find("linear", folder) == folder / "linear.pth"
    (folder / "someone/linear").mkdir(parents=True)
    (folder / "linear.pth").rename(folder / "someone/linear/linear.pth")
    assert find("linear", folder) == folder / "someone/linear/linear.pth"


def test_a_file_that_the_folder_lacks_is_found_in_the_hubs_cache(folder, tmp_path):
    put_into_cache(tmp_path / "cache", "someone/linear", "linear.pth", (folder / "linear.pth").read_bytes())
    (folder / "linear.pth").unlink()
    assert find("linear", folder).read_bytes() == find("linear").read_bytes()


def test_offline_the_error_says_which_file_to_put_where(folder):
    with pytest.raises(UserError) as said:
        find("linear")
    for part in ("someone/linear/linear.pth", "2 MB", "hf download someone/linear linear.pth", "--weights-dir FOLDER"):
        assert part in str(said.value)
    with pytest.raises(UserError, match="hf download someone/text --local-dir FOLDER/text"):
        find_model("text")


def test_a_folder_that_is_none_is_named(folder):
    with pytest.raises(UserError, match="nowhere is no folder.*linear.pth"):
        find("linear", folder / "nowhere")


def test_a_file_of_the_hub_with_another_hash_is_refused(folder, tmp_path, monkeypatch):
    content = (folder / "linear.pth").read_bytes()
    put_into_cache(tmp_path / "cache", "someone/linear", "linear.pth", content)
    digest = hashlib.sha256(content).hexdigest()
    set_hash(monkeypatch, "linear", digest)
    assert find("linear")
    set_hash(monkeypatch, "linear", "0" * 64)
    with pytest.raises(UserError, match=f"{digest}, expected 0000"):
        find("linear")


def test_a_users_own_file_with_another_hash_is_taken_and_that_is_said_aloud(folder, monkeypatch, capsys):
    digest = hashlib.sha256((folder / "linear.pth").read_bytes()).hexdigest()
    set_hash(monkeypatch, "linear", digest)
    find("linear", folder)
    assert capsys.readouterr().err == ""
    set_hash(monkeypatch, "linear", "0" * 64)
    assert find("linear", folder) == folder / "linear.pth"
    assert f"its SHA-256 is {digest}, expected 0000" in capsys.readouterr().err


def test_a_network_gets_its_weights_and_is_ready_to_be_used(folder):
    network = load_network(nn.Linear(3, 2), "linear", folder)
    assert torch.equal(network.weight, NETWORK.weight)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_names_are_translated_before_they_must_fit(folder):
    network = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(UserError, match="0.weight"):
        load_network(network, "linear", folder)
    load_network(network, "linear", folder, lambda found: {f"0.{name}": tensor for name, tensor in found.items()})
    assert torch.equal(network[0].weight, NETWORK.weight)


def test_what_is_not_for_commerce_is_said_aloud_once(folder, capsys):
    for _ in range(2):
        find("academic", folder)
    assert capsys.readouterr().err.count("academic use only") == 1


def tiny_text_model() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return CLIPTextModel(config).eval()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_model_of_transformers_is_read_from_its_folder(folder, form):
    model = tiny_text_model()
    model.save_pretrained(folder / "text")
    if form == "bin":
        (folder / "text/model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "text/pytorch_model.bin")
    read = load_model(CLIPTextModel, "text", folder)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(read(tokens).last_hidden_state, model(tokens).last_hidden_state)


def test_a_model_that_lacks_weights_is_refused_unless_they_are_unused(folder, monkeypatch):
    model = tiny_text_model()
    model.save_pretrained(folder / "text")
    name, *others = sorted(model.state_dict())
    save_file({other: model.state_dict()[other] for other in others}, folder / "text/model.safetensors")
    with pytest.raises(UserError, match="1 weights are missing"):
        load_model(CLIPTextModel, "text", folder)
    published = weights.WEIGHTS["text"]
    monkeypatch.setitem(weights.WEIGHTS, "text", replace(published, unused=re.escape(name)))
    assert load_model(CLIPTextModel, "text", folder)


def test_weights_that_dpt_never_uses_may_be_missing_and_others_may_not():
    names = DPTForDepthEstimation(DPTConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2)).state_dict()
    missing = {name for name in names if re.match(PUBLISHED["dpt_hybrid"].unused, name)}
    assert len(missing) == 4  # two convolutions, each with a bias
