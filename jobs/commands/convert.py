"""`fmwsss convert RUN --to FORMAT`: the images and label maps of a run in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.vocabularies import custom_vocabulary, vocabulary_named
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.exporters import folders
from fmwsss.jobs.exporters.coco import CocoExport, PanopticExport
from fmwsss.jobs.exporters.hugging_face import HuggingFaceExport
from fmwsss.jobs.exporters.label_studio import LabelStudioExport
from fmwsss.jobs.exporters.labelled_images import ExportError, labelled_images, stage_to_export

FORMATS: dict[str, Callable[..., Any]] = {
    "coco": CocoExport,
    "panoptic": PanopticExport,
    "yolo": folders.YoloExport,
    "mmseg": folders.MmsegExport,
    "voc": folders.VocExport,
    "labelstudio": LabelStudioExport,
    "cvat": folders.CvatExport,
    "cityscapes": folders.CityscapesExport,
    "fiftyone": folders.FiftyOneExport,
    "hf": HuggingFaceExport,
}
_PRIVATE = ("run", "cluster")


def run(run: Run, to: str, output: str | None, of: str | None, polygons: bool = False) -> str:
    """Converts a run.

    Args:
        run: the run folder.
        to: one of FORMATS.
        output: a new or empty folder, a path or URL; None is `exports/<to>` in the run.
        of: `seeds/fine`, or `predictions/NAME`; None takes the seeds.
        polygons: of coco, outlines instead of run lengths.

    Returns:
        what was written, in words.

    Raises:
        ValueError: no such format, nothing to convert, or the folder is not empty.
    """
    if to not in FORMATS:
        raise ExportError(f"there is no format {to!r}: use {', '.join(FORMATS)}")
    if polygons and to != "coco":
        raise ExportError("--polygons is of coco: the other formats have outlines or masks of their own")
    manifest = run.manifest()
    if manifest is None:
        raise ExportError(f"there is no run at {run.folder.url}: it has no manifest.json")
    own, stage, receipt = stage_to_export(run, of)
    folder = Folder(output) if output else run.folder.child(f"exports/{to}")
    if folder.list():
        raise ExportError(f"{folder.url} is not empty: give an empty folder by --output, or delete it")
    settings = {key: value for key, value in manifest["config"].items() if key not in _PRIVATE}
    about = {"description": f"Segmentation seeds by fmwsss, {stage}", "stage": of or stage, "settings": settings}
    options = {"polygons": True} if polygons else {}
    export = FORMATS[to](folder, _vocabulary(settings["vocabulary"]), about, **options)
    for image in labelled_images(own, stage, receipt, export.needs_superpixels):
        export.add(image)
    return f"{export.finish()}: {folder.url}"


def _vocabulary(told: Any) -> Vocabulary:
    return vocabulary_named(told) if isinstance(told, str) else custom_vocabulary(told["classes"], told.get("prompts"))
