"""`fmwsss convert RUN --to FORMAT`: the images and label maps of a run in the formats of other tools."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.exporters import folders
from fmwsss.jobs.exporters.coco import CocoExport, PanopticExport
from fmwsss.jobs.exporters.hugging_face import HuggingFaceExport
from fmwsss.jobs.exporters.label_studio import LabelStudioExport
from fmwsss.jobs.exporters.labelled_images import ExportError, labelled_images, stage_to_export
from fmwsss.jobs.images.id_list import ids_of_list
from fmwsss.jobs.review.applied import applied
from fmwsss.jobs.review.corrections import ReviewLog, Standing, standing
from fmwsss.jobs.run_layout import vocabulary_told

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
ORIGINS_FILE = "origins.csv"  # of the images that a person said something of


def run(
    run: Run, to: str, output: str | None, of: str | None, polygons: bool = False, only_images: str | None = None
) -> str:
    """Converts a run.

    Args:
        run: the run folder.
        to: one of FORMATS.
        output: a new or empty folder, a path or URL; None is `exports/<to>` in the run.
        of: `seeds/fine`, or `predictions/NAME`; None takes the seeds.
        polygons: of coco, outlines instead of run lengths.
        only_images: path or URL of a list of ids, a line each; None takes all that nobody rejected.

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
    listed = None if only_images is None else ids_of_list(only_images)
    said, rejected = _said(own, stage)
    folder = Folder(output) if output else run.folder.child(f"exports/{to}")
    if folder.list():
        raise ExportError(f"{folder.url} is not empty: give an empty folder by --output, or delete it")
    settings = {key: value for key, value in manifest["config"].items() if key not in _PRIVATE}
    about = {"description": f"Segmentation seeds by fmwsss, {stage}", "stage": of or stage, "settings": settings}
    options = {"polygons": True} if polygons else {}
    export = FORMATS[to](folder, vocabulary_told(settings["vocabulary"]), about, **options)
    origins = {image_id: "accepted" if each.verdict == "accepted" else "corrected" for image_id, each in said.items()}
    only = listed if listed is not None else _AllBut(rejected)
    given: list[str] = []
    for image in labelled_images(own, stage, receipt, export.needs_superpixels, only, origins):
        export.add(image)
        given.append(image.image_id)
    if listed is not None and (absent := sorted(listed - set(given))):
        print(f"{len(absent)} listed images have no labels in {stage}, such as {absent[0]}", file=sys.stderr)
    if told := [image_id for image_id in given if image_id in origins]:
        folder.write(ORIGINS_FILE, _origins(told, origins, said))
    left_out = f"; {len(rejected)} rejected images were left out" if rejected and listed is None else ""
    return f"{export.finish()}: {folder.url}{left_out}"


@dataclass(frozen=True)
class _AllBut:
    """A container of everything but a few."""

    few: Container[str]

    def __contains__(self, one: Any) -> bool:
        return one not in self.few


def _said(run: Run, stage: str) -> tuple[dict[str, Standing], set[str]]:
    """What people said of the images whose seeds are exported: what is in the seeds, and whom they rejected since."""
    if not stage.startswith("seeds/"):
        return {}, set()
    now = standing(ReviewLog(run.folder).rows())
    rejected = {image_id for image_id, own in now.items() if own.verdict == "rejected"}
    accepted = {image_id: own for image_id, own in now.items() if own.verdict == "accepted"}
    return {**applied(run), **accepted}, rejected


def _origins(ids: Iterable[str], origins: Mapping[str, str], said: Mapping[str, Standing]) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image_id", "origin", "author", "made_at", "num_corrections"])
    for image_id in ids:
        own = said[image_id]
        rows.writerow([image_id, origins[image_id], own.author, own.made_at, own.num_corrections])
    return text.getvalue().encode()
