"""The Arrow schema of every table of a run, and the conversions between a row and what the method works on.

Nothing else names a column first. No table has a time, a host or a machine's path in it: same inputs, same bytes.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from fmwsss.core.class_maps.maps import ClassMaps
from fmwsss.core.errors import InputError
from fmwsss.core.superpixels.masks import Superpixels
from fmwsss.core.superpixels.postprocess import Detections

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),  # encoded, as given
        ("height_px", pa.int32()),  # after the EXIF orientation
        ("width_px", pa.int32()),
        ("classes", pa.list_(pa.string())),
        ("sha256", pa.string()),  # of `image`
        ("truth", pa.binary()),  # label PNG or null; for evaluation and preview only
        ("orientation", pa.int8()),  # 1 to 8, by which the stored pixels are turned upright; null in older runs
        ("bits", pa.int8()),  # of a channel, as stored
    ]
)

SUPERPIXELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("level", pa.list_(pa.int8())),
        ("predicted_iou", pa.list_(pa.float32())),
        ("stability", pa.list_(pa.float32())),
        ("rle", pa.list_(pa.binary())),  # COCO compressed counts
    ]
)

# What CLIP gives each class of the vocabulary, where it tags the images ...
TAG_SCORES = pa.schema([("image_id", pa.string()), ("scores", pa.list_(pa.float32()))])
TAG_SCORES_PAYLOAD = [TAG_SCORES.field("scores")]

# ... and the labels that come of it.
TAGS = pa.schema(
    [
        ("image_id", pa.string()),
        ("classes", pa.list_(pa.string())),  # in the order of the vocabulary
        ("origin", pa.list_(pa.string())),  # of each: dataset, clip or correction
    ]
)

SEEDS = pa.schema(
    [
        ("image_id", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("classes", pa.list_(pa.string())),
        ("seed", pa.binary()),  # palette PNG of class indices
        ("superpixel_class", pa.list_(pa.int16())),
        ("scores", pa.list_(pa.float32())),  # superpixels x (background, present classes), row-major
        ("confidence", pa.binary()),  # grey PNG, 0..255, or null
        ("mean_confidence", pa.float32()),
        ("coverage", pa.float32()),
        ("missing", pa.list_(pa.string())),
        ("grid_height", pa.int32()),
        ("grid_width", pa.int32()),
        ("cam", pa.binary()),  # see maps_to_bytes: present x grid_height x grid_width
        ("refined_cam", pa.binary()),  # null where no affinity was asked for
    ]
)

# Class maps before they are painted, where the foreground is learned on the dataset (docs/method.md, M5.5).
MAPS = pa.schema(
    [
        *(SEEDS.field(name) for name in ("image_id", "height_px", "width_px", "classes")),
        *(SEEDS.field(name) for name in ("grid_height", "grid_width", "cam", "refined_cam")),
        ("margins", pa.list_(pa.float32())),  # of each superpixel, see foreground_margins
        ("features", pa.binary()),  # see features_to_bytes: superpixels x width
    ]
)

PREDICTIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("labels", pa.binary()),  # palette PNG of class indices
        ("classes", pa.list_(pa.string())),  # predicted somewhere in the image, without the background
        ("mean_confidence", pa.float32()),  # mean over pixels of the winning class's probability
        ("grid_height", pa.int32()),
        ("grid_width", pa.int32()),
        ("probabilities", pa.binary()),  # see maps_to_bytes: (background, classes) x grid_height x grid_width
    ]
)

REFINED = pa.schema(
    [
        ("image_id", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("labels", pa.binary()),
        ("classes", pa.list_(pa.string())),
        ("confidence", pa.binary()),  # grey PNG, 0..255
        ("mean_confidence", pa.float32()),
        ("coverage", pa.float32()),
        ("superpixel_class", pa.list_(pa.int16())),
        ("scores", pa.list_(pa.float32())),  # superpixels x (background, classes), row-major
    ]
)

FAILURES = pa.schema(
    [
        ("image_id", pa.string()),
        ("stage", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("traceback", pa.string()),
    ]
)

# What people said of images: not made by a program, so it has times and names.
REVIEW = pa.schema(
    [
        ("correction_id", pa.string()),  # unique
        ("image_id", pa.string()),
        ("action", pa.string()),  # paint, add, strike, accept, reject, undo
        ("class_name", pa.string()),  # of paint, add and strike; null paints background
        ("height_px", pa.int32()),  # of what is painted ...
        ("width_px", pa.int32()),
        ("rle", pa.binary()),  # ... as COCO compressed counts, so that it does not depend on superpixels made later
        ("undoes", pa.string()),  # of undo: a correction_id
        ("author", pa.string()),
        ("made_at", pa.timestamp("us", "UTC")),
    ]
)

# Between the operators of a stage (`cluster/rows.py` adds where a row belongs): an image that was decoded ...
DECODED_PAYLOAD = [
    pa.field("height_px", pa.int32()),
    pa.field("width_px", pa.int32()),
    pa.field("classes", pa.list_(pa.string())),
    pa.field("pixels", pa.binary()),  # RGB, 8 bit, row-major
]
# ... and the class maps that CLIP gives for it, classes in vocabulary order.
MAPS_PAYLOAD = [
    SEEDS.field(name)
    for name in ("height_px", "width_px", "classes", "grid_height", "grid_width", "cam", "refined_cam")
]


# What CLIP says of patches, whatever the classes, travels with the maps to where superpixels are pooled.
LOOKS_PAYLOAD = [
    *MAPS_PAYLOAD,
    pa.field("rows", pa.int32()),
    pa.field("columns", pa.int32()),
    pa.field("looks", pa.binary()),  # see features_to_bytes: (rows x columns) x width
]


# Maps that somebody else made travel with a decoded image to where those of CLIP are made.
GIVEN_PAYLOAD = [
    *DECODED_PAYLOAD,
    pa.field(
        "given",
        pa.list_(
            pa.struct([("grid_height", pa.int32()), ("grid_width", pa.int32()), ("maps", pa.binary())])  # maps_to_bytes
        ),
    ),
]


def maps_row(size: Mapping[str, Any], classes: Sequence[str], maps: ClassMaps) -> dict[str, Any]:
    """The row of MAPS_PAYLOAD that holds the maps of one image.

    Args:
        size: anything with `height_px` and `width_px` of the image.
        classes: of the maps, in their order.
        maps: of the image.
    """
    return {
        "height_px": size["height_px"],
        "width_px": size["width_px"],
        "classes": list(classes),
        "grid_height": maps.cam.shape[1],
        "grid_width": maps.cam.shape[2],
        "cam": maps_to_bytes(maps.cam),
        "refined_cam": None if maps.refined_cam is None else maps_to_bytes(maps.refined_cam),
    }


def looks_row(size: Mapping[str, Any], classes: Sequence[str], maps: ClassMaps) -> dict[str, Any]:
    """The row of LOOKS_PAYLOAD that holds the maps of one image and what CLIP says of its patches; as `maps_row`.

    Args:
        size: as `maps_row` takes it.
        classes: names, one for each map.
        maps: with `looks`.
    """
    assert maps.looks is not None
    rows, columns, width = maps.looks.shape
    looks = features_to_bytes(maps.looks.reshape(rows * columns, width))
    return {**maps_row(size, classes, maps), "rows": rows, "columns": columns, "looks": looks}


def looks_from_row(row: Mapping[str, Any]) -> Float[np.ndarray, "rows columns width"]:
    """What `looks_row` wrote of the patches."""
    return features_of(row["looks"], row["rows"] * row["columns"]).reshape(row["rows"], row["columns"], -1)


def given_from_row(row: Mapping[str, Any]) -> list[ClassMaps]:
    """The maps that travel with a row of GIVEN_PAYLOAD; none with a row of DECODED_PAYLOAD."""
    return [
        ClassMaps(maps_from_bytes(given["maps"], len(row["classes"]), given["grid_height"], given["grid_width"]), None)
        for given in row.get("given") or ()
    ]


# SAM's masks of an image before they are run-length encoded (`proposals.Detections`).
DETECTIONS_PAYLOAD = [
    pa.field("height_px", pa.int32()),
    pa.field("width_px", pa.int32()),
    pa.field("crop_boxes", pa.list_(pa.list_(pa.int32()))),
    pa.field("crop", pa.list_(pa.int16())),
    SUPERPIXELS.field("level"),
    SUPERPIXELS.field("predicted_iou"),
    SUPERPIXELS.field("stability"),
    pa.field("bits", pa.list_(pa.binary())),
]


def detections_row(detections: Detections) -> dict[str, Any]:
    """The row of DETECTIONS_PAYLOAD that holds the masks of one image."""
    return {**vars(detections), "crop_boxes": [list(box) for box in detections.crop_boxes]}


def detections_from_row(row: Mapping[str, Any]) -> Detections:
    """The masks of a row of DETECTIONS_PAYLOAD."""
    return Detections(
        height_px=row["height_px"],
        width_px=row["width_px"],
        crop_boxes=tuple((box[0], box[1], box[2], box[3]) for box in row["crop_boxes"]),
        crop=np.asarray(row["crop"], dtype=np.int16),
        level=np.asarray(row["level"], dtype=np.int8),
        predicted_iou=np.asarray(row["predicted_iou"], dtype=np.float32),
        stability=np.asarray(row["stability"], dtype=np.float32),
        bits=tuple(row["bits"]),
    )


def superpixels_row(image_id: str, superpixels: Superpixels) -> dict[str, Any]:
    """The row of SUPERPIXELS that holds the superpixels of one image.

    Args:
        image_id: unique in the run.
        superpixels: of this image.

    Returns:
        Column -> value.
    """
    return {
        "image_id": image_id,
        "height_px": superpixels.height_px,
        "width_px": superpixels.width_px,
        "level": superpixels.level,
        "predicted_iou": superpixels.predicted_iou,
        "stability": superpixels.stability,
        "rle": list(superpixels.rle),
    }


def superpixels_from_row(row: Mapping[str, Any]) -> Superpixels:
    """The superpixels of a row of SUPERPIXELS, as `Table.to_pylist` or Ray Data gives it."""
    return Superpixels(
        height_px=int(row["height_px"]),
        width_px=int(row["width_px"]),
        level=np.asarray(row["level"], dtype=np.int8),
        predicted_iou=np.asarray(row["predicted_iou"], dtype=np.float32),
        stability=np.asarray(row["stability"], dtype=np.float32),
        rle=tuple(bytes(counts) for counts in row["rle"]),
    )


def maps_to_bytes(maps: Float[np.ndarray, "classes grid_height grid_width"]) -> bytes:
    """Maps in 0..1 as little-endian float16, row-major (at a normalised CAM's scale the error is below 2.5e-4)."""
    return np.ascontiguousarray(maps, dtype="<f2").tobytes()


def maps_from_bytes(
    data: bytes, num_classes: int, grid_height: int, grid_width: int
) -> Float[np.ndarray, "classes grid_height grid_width"]:
    """The float32 maps that `maps_to_bytes` wrote.

    Args:
        data: half-precision numbers, row by row.
        num_classes: maps in it.
        grid_height: rows of each map.
        grid_width: columns of each map.

    Returns:
        Values 0 to 1.

    Raises:
        ValueError: the number of bytes is not that of `num_classes` maps of this size.
    """
    expected_bytes = 2 * num_classes * grid_height * grid_width
    if len(data) != expected_bytes:
        raise InputError(
            f"{num_classes} maps of {grid_height} x {grid_width} take {expected_bytes} bytes, not {len(data)}"
        )
    return np.frombuffer(data, dtype="<f2").reshape(num_classes, grid_height, grid_width).astype(np.float32)


def features_schema(num_views: int) -> pa.Schema:
    """The table of cached views: what the image tower made of each fixed view of an image, a column for each view.

    A training epoch needs one view of every image, and reads one column.
    """
    views = [(f"view_{index}", pa.binary()) for index in range(num_views)]  # see features_to_bytes
    return pa.schema([("image_id", pa.string()), ("height_px", pa.int32()), ("width_px", pa.int32()), *views])


def views_payload(num_views: int) -> list[pa.Field]:
    """Between the operators of the cache: the size of an image and the pixels of its views (RGB, 8 bit, row-major)."""
    return list(features_schema(num_views))[1:]


def features_to_bytes(*arrays: Float[np.ndarray, "_ _"]) -> bytes:
    """Arrays as little-endian float16, row-major, each after a float32 factor: products may be far below float16."""
    return b"".join(
        np.float32(scale).astype("<f4").tobytes() + (array / scale).astype("<f2").tobytes()
        for array in arrays
        for scale in [max(float(np.abs(array).max()), 1e-30)]
    )


def features_from_bytes(data: bytes, *shapes: tuple[int, int]) -> list[Float[np.ndarray, "_ _"]]:
    """The float32 arrays that `features_to_bytes` wrote.

    Raises:
        ValueError: the number of bytes is not that of arrays of these shapes.
    """
    expected_bytes = features_bytes(*shapes)
    if len(data) != expected_bytes:
        raise InputError(f"features of shapes {shapes} take {expected_bytes} bytes, not {len(data)}")
    arrays, begin = [], 0
    for shape in shapes:
        scale = np.frombuffer(data, "<f4", 1, begin)
        values = np.frombuffer(data, "<f2", shape[0] * shape[1], begin + 4)
        arrays.append(values.reshape(shape).astype(np.float32) * scale)
        begin += features_bytes(shape)
    return arrays


def features_of(data: bytes, num_rows: int) -> Float[np.ndarray, "{num_rows} _"]:
    """The one float32 array of so many rows that `features_to_bytes` wrote; its width follows from its size.

    Args:
        data: the bytes.
        num_rows: of the array; none of it if 0.
    """
    if num_rows == 0:
        return np.zeros((0, 0), np.float32)
    (array,) = features_from_bytes(data, (num_rows, (len(data) - 4) // (2 * num_rows)))
    return array


def features_bytes(*shapes: tuple[int, int]) -> int:
    """How many bytes arrays of these shapes take."""
    return sum(4 + 2 * rows * columns for rows, columns in shapes)


def failure_row(image_id: str, stage: str, error: BaseException) -> dict[str, Any]:
    """The row of FAILURES that tells what went wrong with one image.

    Args:
        image_id: unique in the run.
        stage: the stage that failed.
        error: what was raised, with its traceback.

    Returns:
        Column -> value; the message is one line.
    """
    # Full paths differ between machines and runs (Ray unpacks code under a session's name): keep the last two parts.
    frames = [
        f"{'/'.join(PurePath(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return {
        "image_id": image_id,
        "stage": stage,
        "error_type": type(error).__name__,
        "message": " ".join(str(error).split()) or type(error).__name__,
        "traceback": "\n".join(frames),
    }
