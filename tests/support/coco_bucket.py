"""A bucket as docs/cluster.md lays it out: images of COCO and its json, of scenes drawn by program."""

from __future__ import annotations

import json

import numpy as np

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.toy.world import draw_scene
from fmwsss.core.vocabularies import vocabulary_named
from tests.support.image_files import png

# The preset of COCO has the same keys; these models take seconds.
PRESET = """
base: demo
dataset: {kind: folder, images: elsewhere, labels: elsewhere, split: train2014}
shard_rows: 3
propose: {points_per_side: 4}
learn: {classification: {epochs: 1}, segmentation: {epochs: 1}}
"""


def fill(folder: Folder, num_images: int) -> None:
    """Writes `train2014/` and `annotations/instances_train2014.json`.

    Args:
        folder: empty.
        num_images: scenes.
    """
    classes = vocabulary_named("toy").classes
    images, annotations = [], []
    for index in range(1, num_images + 1):
        scene = draw_scene(index)
        name = f"COCO_train2014_{index:012d}.png"
        folder.write(f"train2014/{name}", png(scene.image))
        height, width = scene.truth.shape
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + offset, "image_id": index, "category_id": int(label), "bbox": [0, 0, 1, 1]}
            for offset, label in enumerate(np.setdiff1d(np.unique(scene.truth), [0, 255]))
        ]
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    told = {"images": images, "annotations": annotations, "categories": categories}
    folder.write("annotations/instances_train2014.json", json.dumps(told).encode())
