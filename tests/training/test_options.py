"""Every option of the original's and of diffusers' training scripts is offered, or refused with a reason."""

from dataclasses import fields
from pathlib import Path

import pytest

from controlnet.cli.main import run
from controlnet.cli.train import Train, read_config
from controlnet.errors import UserError
from controlnet.training.config import TrainConfig
from controlnet.training.other_names import ALIASES, REFUSED

OF_THE_ORIGINAL = """
resume_path batch_size logger_freq learning_rate sd_locked only_mid_control gpus precision accumulate_grad_batches
save_memory hint_channels max_epochs max_steps
""".split()
OF_DIFFUSERS = """
pretrained_model_name_or_path controlnet_model_name_or_path revision variant tokenizer_name output_dir cache_dir seed
resolution train_batch_size num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit
resume_from_checkpoint gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler
lr_warmup_steps lr_num_cycles lr_power use_8bit_adam dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay
adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to mixed_precision
enable_xformers_memory_efficient_attention set_grads_to_none dataset_name dataset_config_name train_data_dir
image_column conditioning_image_column caption_column max_train_samples proportion_empty_prompts validation_prompt
validation_image num_validation_images validation_steps tracker_project_name
""".split()
OF_DIFFUSERS_FOR_SDXL = """
pretrained_vae_model_name_or_path crops_coords_top_left_h crops_coords_top_left_w enable_npu_flash_attention
image_interpolation_mode
""".split()
OURS = {field.name for field in fields(Train)}


@pytest.mark.parametrize("name", [*OF_THE_ORIGINAL, *OF_DIFFUSERS, *OF_DIFFUSERS_FOR_SDXL])
def test_an_option_of_theirs_is_offered_or_refused_with_a_reason(name: str) -> None:
    assert sum((name in OURS, ALIASES.get(name) in OURS, bool(REFUSED.get(name)))) == 1


def test_their_names_are_ours_on_the_command_line() -> None:
    import tyro

    told = "--pretrained_model_name_or_path B --output_dir O --train_data_dir D --gpus 2 --logger-freq 7 --max_steps 9"
    options = tyro.cli(Train.for_arguments([]), args=told.split())
    assert (options.base, options.out, str(options.data)) == ("B", Path("O"), "D")
    assert (options.devices, options.validation_steps, options.max_train_steps) == (2, 7, 9)


def test_what_is_refused_says_why_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--data", "d", "--out", "o", "--revision", "main", "--hub-token=x"]) == 2
    told = capsys.readouterr().err
    assert f"there is no --revision: {REFUSED['revision']}" in told
    assert f"there is no --hub-token: {REFUSED['hub_token']}" in told


def test_a_file_of_options_gives_defaults_over_which_the_command_line_prevails(tmp_path: Path) -> None:
    import tyro

    (tmp_path / "pairs").mkdir()
    path = tmp_path / "options.toml"
    path.write_text('data = "pairs"\noutput_dir = "run"\nlearning_rate = 1e-4\nsd_unlocked = true\nseed = 3\n')
    kind = Train.for_arguments(["--config", str(path), "--seed", "9"])
    options = tyro.cli(kind, args=["--config", str(path), "--seed", "9"])
    assert options.data == tmp_path / "pairs"
    assert options.out == Path("run")
    assert (options.learning_rate, options.sd_unlocked, options.seed) == (1e-4, True, 9)


def test_a_file_with_unknown_keys_and_wrong_types_names_them_all(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text('learning_rte = 1\nseed = "x"\nmax_train_steps = 1.5\ncache = "ram"\nrevision = "a"\n')
    with pytest.raises(UserError) as caught:
        read_config(path)
    for part in ("learning_rte", "seed is 'x'; expected a whole number", "max_train_steps is 1.5", "'ram'", "revision"):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["seed = ", None])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "options.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"options\.toml: .*expected a TOML file"):
        read_config(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resolution": 500}, "--resolution is 500; expected a multiple of 64"),
        ({"random_crop": True}, "need a --resolution"),
        ({"crop_variants": 2}, "--crop-variants is given without"),
        ({"num_train_epochs": 2, "max_train_steps": 7}, "expected one of them"),
        ({"mixed_precision": "fp16", "dtype": "bfloat16"}, "expected one of them"),
        ({"learning_rate_unlocked": 1e-6}, "without --sd-unlocked"),
        ({"lr_scheduler": "piecewise_constant"}, "belong together"),
        ({"validation_prompt": ("a", "b")}, "belong together"),
        ({"validation_prompt": ("a", "b"), "validation_image": (Path("1"),) * 3}, "as many, or one for all"),
        ({"adam_beta2": 1.0}, "--adam-beta2 is 1.0; expected 0 or more and less than 1"),
        ({"snr_gamma": 0.0}, "--snr-gamma is 0.0; expected more than 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps is 0; expected 1 or more"),
        ({"ema_decay": -0.1}, "--ema-decay"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        TrainConfig(data=Path("d"), out=Path("o"), **options)  # type: ignore[arg-type]


def test_the_name_of_a_data_set_on_the_hub_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    told = [TrainConfig(data=data, out=Path("o")).to_json() for data in ("fusing/fill50k", Path("pairs"))]
    assert [each["data"] for each in told] == ["fusing/fill50k", str(tmp_path / "pairs")]
    assert told[0]["out"] == str(tmp_path / "o")
