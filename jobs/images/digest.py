"""What was read of a dataset, in a few lines: before anything is paid for, and again when every image was opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.images import UPRIGHT
from fmwsss.jobs.images.readers.base import NUM_EXAMPLES, Listing, counted

NUM_CLASSES = 12  # that are listed; the rest are counted
NUM_READERS = 16
COLUMNS = ("image_id", "classes", "sha256", "height_px", "width_px", "orientation", "bits")


def of_listing(listing: Listing, classes: Sequence[str]) -> list[str]:
    """The lines of a dataset of which no image was opened.

    Args:
        listing: from a reader.
        classes: of the run.

    Returns:
        Lines for people.
    """
    usable = [source for source in listing.sources if not source.problem]
    problems = Counter(source.problem for source in listing.sources if source.problem)
    lines = [f"{len(listing.sources)} images{f', {sum(problems.values())} of which can not be used' * bool(problems)}"]
    lines += [f"  {count}: {problem}" for problem, count in problems.most_common(NUM_EXAMPLES)]
    known = [source.classes for source in usable if source.classes is not None]
    if known and any(known):
        lines += _of_labels(known, classes)
    masks = sum(source.truth_url is not None for source in usable)
    lines.append(f"ground truth for {masks} of {len(usable)} images" if masks else "no ground truth")
    return [*lines, *listing.notes, *(f"? {question}" for question in listing.questions)]


def _of_labels(labels: Sequence[Iterable[str]], classes: Sequence[str]) -> list[str]:
    images_of = Counter(name for own in labels for name in own)
    ranked = [
        f"{name} {images_of[name]}" for name in sorted(classes, key=lambda name: -images_of[name]) if images_of[name]
    ]
    never = [name for name in classes if not images_of[name]]
    more = f" and {len(ranked) - NUM_CLASSES} more" if len(ranked) > NUM_CLASSES else ""
    lines = [f"images a class: {', '.join(ranked[:NUM_CLASSES])}{more}"]
    if never:
        lines.append(
            f"classes that no image shows: {', '.join(never[:NUM_CLASSES])}{' ...' * (len(never) > NUM_CLASSES)}"
        )
    numbers = Counter(len(set(own)) for own in labels)
    lines.append(
        f"images a number of labels: {', '.join(f'{number}: {numbers[number]}' for number in sorted(numbers))}"
    )
    return lines


def of_images(run: Run, stage: str, parts: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The lines of a dataset whose images are in a run: only small columns are read.

    Args:
        run: the run folder.
        stage: that holds the images.
        parts: names of its parts.
        classes: of the run.

    Returns:
        Lines for people.
    """

    def read(part: str) -> pa.Table:
        return run.read_part(stage, part, columns=COLUMNS)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        rows = [row for table in pool.map(read, parts) for row in table.to_pylist()]
    return of_rows(rows, classes)


def of_rows(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    """The lines of images that were opened.

    Args:
        rows: of IMAGES, without their pixels.
        classes: of the run.

    Returns:
        Lines for people; none where there are no rows.
    """
    if not rows:
        return []
    sizes = sorted((row["height_px"] * row["width_px"], row["width_px"], row["height_px"]) for row in rows)
    least, middle, most = (f"{size[1]} x {size[2]}" for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    lines = [*_of_labels([row["classes"] for row in rows], classes)] if any(row["classes"] for row in rows) else []
    lines.append(f"sizes in pixels: {least} to {most}, median {middle}")
    bits = Counter(row["bits"] for row in rows if row.get("bits"))
    if set(bits) - {8}:
        lines.append(f"bits a channel: {', '.join(f'{count} images {own}' for own, count in sorted(bits.items()))}")
    turned = [row["image_id"] for row in rows if row.get("orientation") in UPRIGHT]
    if turned:
        lines.append(
            f"{counted(turned, 'image')} stored turned: seeds have the upright size (`orientation` in images/)"
        )
    return [*lines, *_of_doubles(rows)]


def _of_doubles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Images of equal bytes; first those whose labels contradict each other, for one of them is wrong."""
    same: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        same.setdefault(row["sha256"], []).append(row)
    doubles = [own for own in same.values() if len(own) > 1]
    lines = []
    if doubles:
        names = [" = ".join(row["image_id"] for row in own[:3]) for own in doubles]
        lines.append(f"{counted(names, 'image')} there more than once, byte for byte")
    for own in [own for own in doubles if len({tuple(row["classes"]) for row in own}) > 1][:NUM_EXAMPLES]:
        told = "; ".join(f"{row['image_id']}: {', '.join(row['classes'])}" for row in own[:3])
        lines.append(f"? equal images with other labels: {told}")
    return lines
