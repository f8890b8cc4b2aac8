"""Every source, stage and sink by the name that recipes call it. Adding one: a module, a line here, a test."""

from collections.abc import Mapping
from importlib import import_module

from controlnet.errors import UserError

SOURCES: dict[str, str] = {
    "prompts": "controlnet.build.sources:Prompts",
    "files": "controlnet.build.sources:Files",
    "urls": "controlnet.build.tables:Urls",
    "datasets": "controlnet.build.tables:HubDataset",
}
STAGES: dict[str, str] = {
    "retrieve": "controlnet.build.retrieve:Retrieve",
    "retrieve_remote": "controlnet.build.remote:RetrieveRemote",
    "download": "controlnet.build.download:Download",
    "resolution": "controlnet.build.filters:Resolution",
    "sharpness": "controlnet.build.filters:Sharpness",
    "resize": "controlnet.build.filters:Resize",
    "duplicates": "controlnet.build.duplicates:Duplicates",
    "clip_score": "controlnet.build.models:ClipScore",
    "classifier": "controlnet.build.models:Classifier",
    "caption": "controlnet.build.models:Caption",
    "annotate": "controlnet.build.annotate:Annotate",
}
SINKS: dict[str, str] = {
    "folder": "controlnet.build.sinks:Folder",
    "huggingface": "controlnet.build.hub:HuggingFace",
    "webdataset": "controlnet.build.sinks:WebDataset",
}


def load(table: Mapping[str, str], kind: object, what: str) -> type:
    """The class called `kind`. UserError if there is none."""
    if kind not in table:
        raise UserError(f"there is no {what} {kind!r}; expected one of: {', '.join(table)}")
    module, name = table[str(kind)].split(":")
    found: type = getattr(import_module(module), name)
    return found
