"""Of stage `reports`, the page: one self-contained page with table, failures and a gallery by uncertainty."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import jinja2
import numpy as np
import ray
import yaml
from PIL import Image

from fmwsss.cluster.storage.json_files import read_json
from fmwsss.cluster.storage.ledger import Run
from fmwsss.cluster.storage.redaction import redacted
from fmwsss.core.images import UNLIMITED, decode_label_png, decode_rgb
from fmwsss.core.labels import PALETTE
from fmwsss.core.metrics import confusion_matrix, mean_iou
from fmwsss.core.overlays import data_url, with_doubt, with_labels, with_map, with_superpixels
from fmwsss.core.schemas import maps_from_bytes, superpixels_from_row
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.reports.evaluate import STAGE
from fmwsss.jobs.reports.table import class_cells, shown_table
from fmwsss.jobs.run_layout import METRICS_FILE
from fmwsss.jobs.seeds.methods import MAPS_COLUMN
from fmwsss.jobs.stages import upstream
from fmwsss.jobs.training.checkpoint import HISTORY_FILE

PAGE_FILE = "index.html"
THUMBNAIL_PX = 240
PANELS = ("image", "CAM", "whole", "part", "sub-part", "coarse", "fine", "doubt", "truth")
WORST, TYPICAL = "most uncertain", "typical"
CURVE_POINTS = 200


def run(config: RunConfig, run: Run, stages: Sequence[Stage]) -> str:
    """Writes `reports/index.html`, which opens from a disk without a network; returns its URL.

    Args:
        config: the run file.
        run: the run folder, with `reports/metrics.json`.
        stages: of the run; those of iterations have curves.

    Raises:
        ValueError: the seeds are not complete.
    """
    (fine,) = upstream(run, STAGE, ["seeds/fine"])
    learned = [stage.name for stage in stages if stage.unit == "iterations" and run.receipt(stage.name)]
    chosen = _choose(run, fine.parts, config.preview.num_images)
    # The page is made and written by one task on a worker: no picture passes through the driver.
    ray.get(_write_page.options(num_cpus=0.5).remote(config, run, chosen, learned))
    return f"{run.folder.child(STAGE).url}/{PAGE_FILE}"


def _choose(run: Run, parts: list[str], count: int) -> list[tuple[str, str]]:
    """(part, image id) of the `count` most uncertain images, and of as many around the median of the others."""
    ranked = []
    for part in parts:
        table = run.read_part("seeds/fine", part, columns=["image_id", "mean_confidence"])
        ranked += [(row["mean_confidence"], row["image_id"], part) for row in table.to_pylist()]
    ranked.sort()
    worst, others = ranked[:count], ranked[count:]
    begin = max(0, (len(others) - count) // 2)
    return [(part, image_id) for _, image_id, part in (*worst, *others[begin : begin + count])]


@ray.remote
def _write_page(config: RunConfig, run: Run, chosen: list[tuple[str, str]], learned: list[str]) -> None:
    page = make_page(config, run, chosen, learned)
    run.folder.child(STAGE).write(PAGE_FILE, page.encode())


def make_page(config: RunConfig, run: Run, chosen: list[tuple[str, str]], learned: list[str]) -> str:
    """The page as text; everything that comes from the data is escaped.

    Args:
        config: the run file.
        run: the run folder.
        chosen: part and id of the images that are shown.
        learned: the stages that learned something, in their order.
    """
    metrics = read_json(run.folder.child(STAGE), METRICS_FILE)
    vocabulary = config.resolve_vocabulary()
    cards = []
    for part in sorted({part for part, _ in chosen}):
        wanted = {image_id for other, image_id in chosen if other == part}
        cards += _cards(run, part, wanted, vocabulary, MAPS_COLUMN[config.seeds.fine.maps])
    cards.sort(key=lambda card: (-card["uncertainty"], card["image_id"]))
    for place, card in enumerate(cards):
        card["group"] = WORST if place < config.preview.num_images else TYPICAL
    manifest = run.manifest() or {}
    page = importlib.resources.files("fmwsss.jobs.reports") / "templates/report.html"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(page.read_text(encoding="utf-8")).render(
        title=run.folder.url.rstrip("/").rpartition("/")[2],
        metrics=metrics,
        table=shown_table(metrics),
        by_class=class_cells(metrics),
        curves=[_curve(run, stage) for stage in learned if run.folder.child(stage).exists(HISTORY_FILE)],
        failures=run.failures().to_pylist(),
        classes=sorted({chip["name"] for card in cards for chip in card["classes"]}),
        groups=[(name, [card for card in cards if card["group"] == name]) for name in (WORST, TYPICAL)],
        cards=cards,
        url=redacted(run.folder.url),
        models=manifest.get("models", {}),
        versions=manifest.get("versions", {}),
        settings=yaml.safe_dump(manifest.get("config", {}), sort_keys=False, allow_unicode=True),
    )


def _cards(run: Run, part: str, wanted: set[str], vocabulary: Vocabulary, column: str) -> list[dict[str, Any]]:
    columns = ["image_id", "image", "truth"]
    tables = {
        name: {row["image_id"]: row for row in run.read_part(name, part, columns=use).to_pylist()}
        for name, use in (("images", columns), ("superpixels", None), ("seeds/coarse", None), ("seeds/fine", None))
    }
    return [
        _card({name: table.get(image_id) for name, table in tables.items()}, vocabulary, column)
        for image_id in sorted(wanted)
    ]


def _card(rows: dict[str, Any], vocabulary: Vocabulary, column: str) -> dict[str, Any]:
    fine = rows["seeds/fine"]
    image = decode_rgb(rows["images"]["image"], max_pixels=UNLIMITED)
    superpixels = superpixels_from_row(rows["superpixels"])
    maps = maps_from_bytes(fine[column], len(fine["classes"]), fine["grid_height"], fine["grid_width"])
    pictures = {"image": image, "CAM": with_map(image, maps)}
    for level, name in ((2, "whole"), (1, "part"), (0, "sub-part")):
        pictures[name] = with_superpixels(image, superpixels, level)
    for name in ("coarse", "fine"):
        if rows[f"seeds/{name}"] is not None:
            pictures[name] = with_labels(image, decode_label_png(rows[f"seeds/{name}"]["seed"]))
    if fine["confidence"]:
        doubt = 1 - np.asarray(Image.open(BytesIO(fine["confidence"])), np.float32) / 255
        pictures["doubt"] = with_doubt(image, doubt)
    iou = None
    if rows["images"]["truth"] is not None:
        truth = decode_label_png(rows["images"]["truth"])
        pictures["truth"] = with_labels(image, truth)
        iou = mean_iou(confusion_matrix(decode_label_png(fine["seed"]), truth, 1 + len(vocabulary.classes)))
    return {
        "image_id": fine["image_id"],
        "classes": [{"name": name, "colour": _colour(vocabulary.index(name))} for name in fine["classes"]],
        "uncertainty": 1 - fine["mean_confidence"],
        "coverage": fine["coverage"],
        "missing": fine["missing"],
        "iou": iou,
        "panels": [(name, data_url(pictures[name], THUMBNAIL_PX)) for name in PANELS if name in pictures],
    }


def _colour(class_index: int) -> str:
    return "#" + "".join(f"{value:02x}" for value in PALETTE[class_index])


def _curve(run: Run, stage: str) -> dict[str, Any]:
    """The loss of a stage as the points of a line in a box of 100 by 100."""
    history = read_json(run.folder.child(stage), HISTORY_FILE)
    losses = np.array([entry["loss"] for entry in history])
    bins = np.array_split(losses, min(CURVE_POINTS, len(losses)))
    means = np.array([part.mean() for part in bins])
    spread = max(float(means.max() - means.min()), 1e-9)
    heights = 95 - 90 * (means - means.min()) / spread
    points = " ".join(f"{100 * i / max(1, len(means) - 1):.2f},{y:.2f}" for i, y in enumerate(heights))
    looks = [(entry["iteration"] + 1, entry["agreement"]) for entry in history if "agreement" in entry]
    best = max(looks, key=lambda look: look[1], default=None)
    return {
        "name": stage,
        "looks": {"first": looks[0], "last": looks[-1], "best": best} if looks else None,
        "first": f"{means[0]:.3f}",
        "last": f"{means[-1]:.3f}",
        "count": history[-1]["iteration"] + 1,
        "points": points,
    }
