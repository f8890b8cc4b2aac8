"""How fast pictures become hints: canny from JPEG to PNG on disk, and networks in batches beside one by one.

    python bench/annotate.py [--quick] [--json FILE]

The pictures are crops of scikit-image's photographs at 512 pixels. The networks have random weights, which cost the
same time as trained ones; their ratio is one by one over batches, both in the precision that the processor is fastest
in. The last line has the rate of canny with as many processes as there are cores.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import skimage.data
import torch
import tyro
from PIL import Image

from controlnet.annotators.annotator import NetworkAnnotator
from controlnet.annotators.canny import Canny
from controlnet.annotators.hed import Hed
from controlnet.annotators.hed_network import HedNetwork
from controlnet.annotators.hint_file import encode
from controlnet.annotators.lineart import Lineart
from controlnet.annotators.lineart_network import LineartNetwork
from controlnet.annotators.mlsd import Mlsd
from controlnet.annotators.mlsd_network import MlsdNetwork
from controlnet.annotators.tensors import placed
from controlnet.data.workers import cores
from controlnet.devices import DType, fastest_dtype
from controlnet.images import Rgb, decode

SIDE, NETWORK_SIDE = 512, 256
NETWORKS = {"hed": (Hed, HedNetwork), "mlsd": (Mlsd, MlsdNetwork), "lineart": (Lineart, LineartNetwork)}
BATCH = 8
FASTEST: DType = "bfloat16" if fastest_dtype("auto", "cpu") == "bfloat16" else "float32"


def crops(count: int, seed: int = 0) -> list[Rgb]:
    """Photographs at 512 x 512, each cropped otherwise."""
    random = np.random.default_rng(seed)
    photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    return [_crop(photographs[number % len(photographs)], random) for number in range(count)]


def _crop(photograph: Rgb, random: np.random.Generator) -> Rgb:
    height, width = photograph.shape[:2]
    side = int(random.integers(min(height, width) // 2, min(height, width) + 1))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(photograph).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def canny_rate(folder: Path, count: int, workers: int) -> float:
    """Pictures a second from JPEG on disk to PNG on disk by the command, from its start to its end."""
    out = folder.with_name(f"{folder.name}-{workers}")
    words = ["annotate", "canny", str(folder), str(out), "--workers", str(workers)]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "controlnet", *words], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    assert len(list(out.glob("*.png"))) == count
    return count / seconds


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    return 1000 * median(_timed(call) for _ in range(rounds))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, pictures: Sequence[Rgb], rounds: int) -> dict[str, float]:
    """Milliseconds a picture, one by one and in batches; and how far the hints of these are apart, in levels."""
    annotator = with_random_weights(name, FASTEST)
    singly, together = partial(_singly, annotator, pictures), partial(annotator.batch, pictures)
    apart = max(
        int(np.abs(one.astype(int) - other.astype(int)).max()) for one, other in zip(singly(), together(), strict=True)
    )
    calls = {"one by one": singly, "batched": together}
    spent = {what: milliseconds(call, rounds) / len(pictures) for what, call in calls.items()}
    return {**spent, "ratio": spent["one by one"] / spent["batched"], "levels apart": apart}


def _singly(annotator: NetworkAnnotator, pictures: Sequence[Rgb]) -> list[Rgb]:
    return [annotator(picture) for picture in pictures]


def with_random_weights(name: str, dtype: DType) -> NetworkAnnotator:
    torch.manual_seed(0)
    kind, network = NETWORKS[name]
    annotator = kind(dtype=dtype, detect_resolution=NETWORK_SIDE)
    vars(annotator)["network"] = placed(network().eval(), annotator)  # where its cached property would keep it
    return annotator


def main(quick: bool = False, json: Path | None = None) -> None:
    """Measure.

    Args:
        quick: Fewer pictures and rounds, under two minutes.
        json: Also write the figures to this file.
    """
    count, rounds, batch = (600, 1, 4) if quick else (4000, 5, BATCH)
    with TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        for number, picture in enumerate(crops(count)):
            Image.fromarray(picture).save(folder / f"{number:05d}.jpg", quality=90)
        stages = _stages(folder / "00000.jpg")
        rates = {workers: canny_rate(folder, count, workers) for workers in sorted({1, cores()})}
    print("canny at 512:", *(f"{stage} {spent:.1f} ms" for stage, spent in stages.items()), sep="  ")
    for workers, rate in rates.items():
        print(f"canny from JPEG to PNG: {rate:.0f} pictures/s with {workers} process(es)")
    networks = {name: compare(name, crops(batch), rounds) for name in NETWORKS}
    print(f"\nnetworks at {NETWORK_SIDE} in {FASTEST}, milliseconds a picture")
    print(f"{'':<10}{'one by one':>12}{f'batches of {batch}':>14}{'ratio':>8}")
    for name, it in networks.items():
        spent = f"{it['one by one']:>12.0f}{it['batched']:>14.0f}{it['ratio']:>8.2f}"
        print(f"{name:<10}{spent}   batches are {it['levels apart']:.0f} levels from one by one")
    if json is not None:
        figures = {"stages": stages, "rates": rates, "networks": networks}
        json.write_text(dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"rate {rates[cores()]:.0f}")


def _stages(path: Path) -> dict[str, float]:
    content = path.read_bytes()
    picture = decode(content)
    hint = Canny()(picture)
    calls = {"decode": partial(decode, content), "annotate": partial(Canny(), picture), "encode": partial(encode, hint)}
    return {stage: milliseconds(call, 20) for stage, call in calls.items()}


if __name__ == "__main__":
    tyro.cli(main)
