"""The final table: the same cells on a terminal and in the report."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

NONE = "–"

QUALITY_OF_TAGS = {"precision": "precision", "recall": "recall", "mean average precision": "map"}


def table_cells(row: dict[str, Any]) -> dict[str, Any]:
    """One entry of `metrics.json`'s rows as words and figures for people."""
    ranked = sorted(row["per_class"].items(), key=lambda item: item[1])
    best = row.get("best_on_truth")
    return {
        "name": row["name"] + (f" ({row['source']})" if row.get("source", "gradcam") != "gradcam" else ""),
        "split": row["split"],
        "miou": _percent(row["miou"]),
        "share": round(100 * (row["miou"] or 0)),
        "accuracy": _percent(row["pixel_accuracy"]),
        "boundary": _percent(row["boundary_iou"]),
        "worst": f"{ranked[0][0]} {_percent(ranked[0][1])}" if ranked else NONE,
        "best": f"{ranked[-1][0]} {_percent(ranked[-1][1])}" if ranked else NONE,
        "best_on_truth": f"{_percent(best['miou'])} (power {best['background_power']:g})" if best else NONE,
        "confidence": f"{row['mean_confidence']:.2f}" if "mean_confidence" in row else NONE,
        "coverage": f"{100 * row['coverage']:.0f} %" if "coverage" in row else NONE,
        "images": row["images"],
        "failures": row["failures"],
        "seconds": f"{row['seconds_per_image']:.2f}",
    }


HEADS = {
    "name": "labels", "miou": "mIoU", "accuracy": "pixels", "boundary": "boundary", "worst": "worst class",
    "best": "best class", "best_on_truth": "best on truth", "confidence": "confidence", "coverage": "covered",
    "images": "images", "failures": "failures", "seconds": "s / image",
}  # fmt: skip


def shown_table(metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of the page: columns that some row has something in, and empty cells where a row has nothing.

    Returns:
        `heads` by key, and `rows`, each with the cells by key.
    """
    rows = [table_cells(row) for row in metrics["rows"]]
    rows = [{key: "" if cell == NONE else cell for key, cell in row.items()} for row in rows]
    heads = {key: head for key, head in HEADS.items() if any(row[key] not in ("", 0) for row in rows)}
    return {"heads": heads, "rows": rows}


def class_cells(metrics: dict[str, Any]) -> dict[str, Any]:
    """IoU of each class in every row, classes in the order of what the masks allow and the last seeds miss.

    Returns:
        `names` of the rows; `classes`, each with `name`, `images` that show it, and `cells` in the order of `names`.
    """
    rows = [row for row in metrics["rows"] if row["per_class"]]
    by_name = {row["name"]: row["per_class"] for row in rows}
    masks, seeds = (by_name.get(name, {}) for name in ("superpixels named by ground truth", "fine"))
    counts = metrics.get("images_of_class", {})
    ordered = sorted(counts, key=lambda name: seeds.get(name, 0) - masks.get(name, 0))
    classes = [
        {"name": name, "images": counts[name], "cells": [_percent(row["per_class"].get(name)) for row in rows]}
        for name in ordered
    ]
    return {"names": [row["name"] for row in rows], "classes": classes}


def print_table(metrics: dict[str, Any]) -> None:
    """Prints the final table, on a terminal or into a log; without ground truth, what can be said without it."""
    if metrics["truth"]:
        _print_quality(metrics)
    else:
        _print_counts(metrics)
    if tags := metrics.get("tags"):
        print(tags_line(tags))


def tags_line(tags: dict[str, Any]) -> str:
    """What is told of tags, a line.

    Args:
        tags: of `tag_quality`.
    """
    told = f"tags: {tags['labels_per_image']:.1f} classes an image"
    if "map" not in tags:
        return told
    figures = ", ".join(f"{name} {100 * tags[key]:.1f}" for name, key in QUALITY_OF_TAGS.items())
    return f"{told}; beside the labels of {tags['images_judged']} images: {figures} %"


def _print_counts(metrics: dict[str, Any]) -> None:
    """Confidence and coverage of the seeds, and how many images each class is in."""
    table = Table(title=f"split: {metrics['split']}; no ground truth, so no mIoU")
    heads = {"name": "labels", "confidence": "confidence", "coverage": "coverage", "images": "images",
             "failures": "failures", "seconds": "s / image"}  # fmt: skip
    for key, head in heads.items():
        table.add_column(head, justify="left" if key == "name" else "right")
    table.add_column("miss a label", justify="right")
    for row in metrics["rows"]:
        if "mean_confidence" not in row:
            continue  # maps have none
        missing = f"{100 * row['share_with_missing_class']:.0f} %" if "share_with_missing_class" in row else NONE
        cells = table_cells(row)
        table.add_row(*(str(cells[key]) for key in heads), missing)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    if labels := metrics.get("labels"):
        classes = Table("class", title="images of a class")
        for head in ("labelled", "in the seed"):
            classes.add_column(head, justify="right")
        for name, count in sorted(labels.items(), key=lambda item: -item[1]["images"]):
            classes.add_row(name, str(count["images"]), str(count["seeded"]))
        console.print(classes)


def _print_quality(metrics: dict[str, Any]) -> None:
    table = Table(title=f"mIoU in %, split: {metrics['split']}")
    heads = {
        "name": "labels", "split": "split", "miou": "mIoU", "accuracy": "pixels", "boundary": "boundary",
        "worst": "worst class", "best": "best class",
        "best_on_truth": "best on truth", "images": "images", "failures": "failures", "seconds": "s / image",
    }  # fmt: skip
    if all(row["split"] == metrics["split"] for row in metrics["rows"]):
        del heads["split"]
    for key, head in heads.items():
        table.add_column(head, justify="left" if key in ("name", "split", "worst", "best") else "right")
    for row in metrics["rows"]:
        cells = table_cells(row)
        table.add_row(*(str(cells[key]) for key in heads))
    Console(width=None if Console().is_terminal else 160).print(table)


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"
