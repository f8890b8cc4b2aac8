"""Options of the original's and of diffusers' training scripts that have another name here, or none. Imports nothing.

All others have the same name: see `options.py`.
"""

# theirs -> ours, where they mean the same
ALIASES: dict[str, str] = {
    "pretrained_model_name_or_path": "base",
    "pretrained_vae_model_name_or_path": "pretrained_vae",
    "controlnet_model_name_or_path": "control",
    "resume_path": "control",  # the original's: its file with a control attached
    "tokenizer_name": "tokenizer",
    "dataset_name": "data",
    "train_data_dir": "data",
    "output_dir": "out",
    "batch_size": "train_batch_size",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "gpus": "devices",
    "max_steps": "max_train_steps",
    "max_epochs": "num_train_epochs",
    "logger_freq": "validation_steps",
}

FOLDER = "`hf download REPOSITORY --revision REVISION --local-dir FOLDER` gets exactly one; give the folder as --base"
# theirs -> why there is no such option, and what to do
REFUSED: dict[str, str] = {
    "revision": f"a run is on one set of weights, which its config.json names by their hash; {FOLDER}",
    "variant": f"--dtype says how precise the base is, whatever its files are; for others of a repository {FOLDER}",
    "cache_dir": "the hub's cache is where HF_HOME says, for all commands; set that, or give folders",
    "hub_token": "a token on a command line is kept in its history; log in with `hf auth login`, or set HF_TOKEN",
    "crops_coords_top_left_h": "SDXL is told the crop of every picture as it truly is; leave it out",
    "crops_coords_top_left_w": "SDXL is told the crop of every picture as it truly is; leave it out",
    "image_interpolation_mode": "pictures are resized bilinearly, hints alike; resize them before for another way",
    "enable_xformers_memory_efficient_attention": "torch's own attention needs as little memory; --attention sdpa",
    "enable_npu_flash_attention": "there is nothing for NPUs here; --attention sdpa is torch's own",
    "set_grads_to_none": "gradients are set to none after every step; leave it out",
    "sd_locked": "the base is locked unless --sd-unlocked is given",
    "save_memory": "the original's way to attend in parts; --attention sdpa needs as little",
    "hint_channels": "the data's hints tell how many channels they have",
    "precision": "--dtype float32, bfloat16 or float16, or --mixed-precision no, bf16 or fp16",
    "local_rank": "torchrun and SLURM say it in the environment; leave it out",
}
