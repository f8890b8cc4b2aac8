"""The data of a training as its options name it."""

from pathlib import Path

from controlnet.data.formats.records import Columns
from controlnet.data.pairs import Pairs
from controlnet.data.transform import Transform
from controlnet.training.cache import Caching
from controlnet.training.options import DataOptions


def open_pairs(options: DataOptions) -> Pairs:
    """The pairs to train on. UserError for a place that is no data set, with all that is wrong."""
    transform = Transform(
        options.resolution, options.random_crop, options.random_flip, aspect_buckets=options.aspect_buckets
    )
    return _open(options, options.data, transform, options.max_train_samples)


def open_validation(options: DataOptions) -> Pairs | None:
    """The held-out pairs, if they are named: at the same size, nothing random about them, in buckets neither."""
    if options.validation_data is None:
        return None
    return _open(options, options.validation_data, Transform(options.resolution), None)


def caching_of(options: DataOptions) -> Caching:
    return Caching(options.cache, options.crop_variants or None)


def _open(options: DataOptions, place: Path | str, transform: Transform, length: int | None) -> Pairs:
    columns = Columns(
        options.image_column,
        options.conditioning_image_column,
        options.caption_column,
        options.dataset_split,
        options.dataset_config_name,
        options.streaming,
        length,
    )
    return Pairs(place, columns, transform, options.annotate)
