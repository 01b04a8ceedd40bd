# pyright: reportMissingImports=false, reportMissingModuleSource=false
"""The images and labels of a run as data sets of detectron2: its catalogs, loader and evaluator, out of Parquet.

Imported only by the engine `detectron2` and its tests.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from torch import Tensor, nn

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb


def register_dataset(run: Run, stage: str, column: str, class_names: tuple[str, ...]) -> str:
    """Enters the images of a run, and the labels in a column of one of its stages, in detectron2's catalogs.

    File names there look like `<run>/images/part-00000.parquet#<image_id>`; `read_cell` reads them.

    Args:
        run: the run folder.
        stage: with the labels.
        column: of its parts.
        class_names: background first.

    Returns:
        the name in the catalogs.
    """
    name = f"fmwsss:{run.folder.url}:{stage}.{column}"
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, lambda: _dataset_dicts(run, stage, column))
        MetadataCatalog.get(name).set(stuff_classes=list(class_names), ignore_label=255, evaluator_type="sem_seg")
    return name


def _dataset_dicts(run: Run, stage: str, column: str) -> list[dict[str, Any]]:
    receipt = run.receipt("images")
    assert receipt is not None
    dicts = []
    for part in receipt.parts:
        sizes = run.read_part("images", part, columns=["image_id", "height_px", "width_px"]).to_pylist()
        labels = run.read_part(stage, part, columns=["image_id", column]).to_pylist()
        has_labels = {row["image_id"] for row in labels if row[column] is not None}
        dicts += [
            {
                "file_name": f"images/{part}#{row['image_id']}",
                "sem_seg_file_name": f"{stage}/{part}#{row['image_id']}",
                "image_id": row["image_id"],
                "height": row["height_px"],
                "width": row["width_px"],
            }
            for row in sizes
            if row["image_id"] in has_labels
        ]
    return dicts


def read_cell(run: Run, file_name: str, column: str) -> bytes:
    """The bytes that a file name of our catalog means.

    Args:
        run: the run folder.
        file_name: see `register_dataset`.
        column: of the part.

    Returns:
        An encoded image.
    """
    path, _, image_id = file_name.partition("#")
    stage, _, part = path.rpartition("/")
    return _column(run, stage, part, column)[image_id]


@functools.lru_cache(maxsize=2)
def _column(run: Run, stage: str, part: str, column: str) -> dict[str, bytes]:
    """A column of one part, by image. Images are read in the order of parts: the last of each column is enough."""
    table = run.read_part(stage, part, columns=["image_id", column])
    return dict(zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True))


def test_loader(run: Run, dataset_name: str) -> Any:
    """detectron2's loader of test images, out of the run's Parquet.

    Args:
        run: the run folder.
        dataset_name: in the catalogs.
    """

    def read(entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "image": decode_rgb(read_cell(run, entry["file_name"], "image"), max_pixels=UNLIMITED)}

    return build_detection_test_loader(DatasetCatalog.get(dataset_name), mapper=read, num_workers=0)


def evaluator(run: Run, dataset_name: str, column: str = "truth") -> SemSegEvaluator:
    """detectron2's evaluator against labels in the run's Parquet.

    Args:
        run: the run folder.
        dataset_name: in the catalogs.
        column: of the truth.
    """

    def read(file_name: str, dtype: Any) -> np.ndarray:
        return decode_label_png(read_cell(run, file_name, column)).astype(dtype)

    return SemSegEvaluator(dataset_name, distributed=comm.get_world_size() > 1, sem_seg_loading_fn=read)


def as_result(labels: np.ndarray, num_classes: int) -> dict[str, Tensor]:
    """A label map in the form of a model's output, for the evaluator; 255 is not among what it can be.

    Args:
        labels: class indices, (height, width).
        num_classes: with background.

    Returns:
        `sem_seg`, (classes, height, width).
    """
    return {"sem_seg": nn.functional.one_hot(torch.from_numpy(labels).long(), num_classes).permute(2, 0, 1)}
