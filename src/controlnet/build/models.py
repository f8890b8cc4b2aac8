"""Stages that ask a model what a picture shows: captions, whether they fit, and what must not be there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from controlnet.annotators.annotator import Range
from controlnet.annotators.weights import open_model
from controlnet.build.clip import Clip
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.build.stage import Context, Place, Stage, Work
from controlnet.build.weights import model_folder, revision
from controlnet.checkpoints.parts import reading
from controlnet.devices import choose_device, choose_dtype
from controlnet.errors import UserError
from controlnet.images import decode


class _Seeing:
    """A model of transformers that looks at pictures, with what prepares them for it."""

    def __init__(self, kind: Any, model: str, context: Context) -> None:
        from transformers import AutoImageProcessor

        self.folder = model_folder(model)
        self.device = choose_device(context.device)
        self.dtype = choose_dtype(context.dtype, self.device)
        self.network = open_model(kind, self.folder, self.dtype).to(self.device)
        with reading(self.folder, "an image processor"):
            self.processor: Any = AutoImageProcessor.from_pretrained(self.folder, backend="pil", local_files_only=True)

    def prepared(self, rows: Sequence[Row]) -> Tensor:
        pictures = [Image.fromarray(decode(row.files[IMAGE])) for row in rows]
        pixels: Tensor = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Caption(Stage):
    """Says in words what each picture shows, by BLIP (Li et al. 2022) or another model that captions."""

    rows_at_once: ClassVar[int] = 8

    model: str = "Salesforce/blip-image-captioning-base"
    """A name of the hub, or a folder: BLIP, GIT, ViT-GPT2 and others that need no question."""
    begin: str = ""
    """How BLIP's captions begin: "a photograph of"."""
    max_tokens: Annotated[int, Range(1, 500)] = 50
    """The longest caption, in tokens."""
    keep: bool = False
    """Whether rows that have a caption keep it."""

    @property
    def place(self) -> Place:
        return "device"

    def setup(self, context: Context) -> Work:
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        seeing = _Seeing(AutoModelForImageTextToText, self.model, context)
        with reading(seeing.folder, "a tokenizer"):
            tokenizer: Any = AutoTokenizer.from_pretrained(seeing.folder, local_files_only=True)
        by = revision(self.model)

        @torch.inference_mode()
        def captions(rows: Sequence[Row]) -> list[str]:
            told = tokenizer([self.begin] * len(rows), return_tensors="pt").to(seeing.device) if self.begin else {}
            ids = {name: told[name] for name in ("input_ids", "attention_mask") if name in told}
            written = seeing.network.generate(
                pixel_values=seeing.prepared(rows), max_new_tokens=self.max_tokens, do_sample=False, **ids
            )
            return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]

        def caption(rows: Sequence[Row]) -> list[Row]:
            asked = [row for row in rows if not (self.keep and row.get("caption"))]
            new = dict(zip((row.id for row in asked), captions(asked), strict=True)) if asked else {}
            return [row.having(caption=new[row.id], captioner=by) if row.id in new else row for row in rows]

        return caption


@dataclass(frozen=True, kw_only=True)
class ClipScore(Stage):
    """Leaves out pictures that are not what their caption says, by the cosine in CLIP's space (Hessel et al. 2021)."""

    model: str = "openai/clip-vit-base-patch32"
    """A CLIP model: a name of the hub, or a folder."""
    least: Annotated[float, Range(-1, 1)] = 0.2
    """Cosine under which a row is dropped; with the usual CLIP models captions that fit have 0.25 to 0.35."""

    @property
    def place(self) -> Place:
        return "device"

    def setup(self, context: Context) -> Work:
        clip = Clip(self.model, context.device, context.dtype)

        def score(rows: Sequence[Row]) -> list[Row]:
            seen_nd = clip.of_pictures([decode(row.files[IMAGE]) for row in rows])
            cosines = (seen_nd * clip.of_texts([row.text for row in rows])).sum(axis=1)
            return [self.judge(row, float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]

        return score

    def judge(self, row: Row, cosine: float) -> Row:
        row = row.having(clip_score=cosine)
        return row if cosine >= self.least else row.dropped("not what its caption says", f"CLIP score {cosine:.3f}")


@dataclass(frozen=True, kw_only=True)
class Classifier(Stage):
    """Leaves out pictures that a classifier finds to be of one kind: with a watermark, not safe for work."""

    model: str
    """A classifier of pictures: a name of the hub, or a folder."""
    label: str
    """The kind that is not wanted, as the model calls it."""
    score: Literal["watermark_score", "nsfw_score"]
    """Column that keeps the probability."""
    most: Annotated[float, Range(0, 1)] = 0.5
    """Probability above which a row is dropped."""

    @property
    def place(self) -> Place:
        return "device"

    def setup(self, context: Context) -> Work:
        from transformers import AutoModelForImageClassification

        seeing = _Seeing(AutoModelForImageClassification, self.model, context)
        labels = dict(seeing.network.config.label2id)
        if self.label not in labels:
            raise UserError(f"{self.model} has no label {self.label!r}; expected one of: {', '.join(labels)}")

        @torch.inference_mode()
        def classify(rows: Sequence[Row]) -> list[Row]:
            logits = seeing.network(pixel_values=seeing.prepared(rows)).logits
            shares = logits.float().softmax(dim=-1)[:, labels[self.label]].tolist()
            return [self.judge(row, share) for row, share in zip(rows, shares, strict=True)]

        return classify

    def judge(self, row: Row, share: float) -> Row:
        known: dict[str, Any] = {self.score: share}
        row = row.having(**known)
        return row if share <= self.most else row.dropped(self.label, f"{self.score} {share:.3f}")
