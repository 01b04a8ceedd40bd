"""What the stages of a run lay over what they make: corrections as they stood when the run was started last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.seeds.corrections import PaintedRegion
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.review.corrections import APPLIED_FILE, FOLDER, REJECT, VERDICTS, Standing, in_order, standing


@dataclass(frozen=True)
class Relabelled:
    """Labels of an image that people added to those of its dataset, and struck from them."""

    added: tuple[str, ...]
    struck: tuple[str, ...]

    def classes(self, classes: Sequence[str]) -> list[str]:
        """The labels that count."""
        return [name for name in dict.fromkeys((*classes, *self.added)) if name not in self.struck]


def applied_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of REVIEW that the run was started with last; none where nobody corrected anything."""
    folder = run.folder.child(FOLDER)
    return in_order(folder.read_table(APPLIED_FILE).to_pylist()) if folder.exists(APPLIED_FILE) else []


def applied(run: Run) -> dict[str, Standing]:
    """What counts of them, by image."""
    return standing(applied_rows(run))


def relabelled_of(own: Mapping[str, Standing], vocabulary: Vocabulary) -> dict[str, Relabelled]:
    """The labels that people changed, by image; of classes that the run does not have, none.

    Args:
        own: what counts, by image.
        vocabulary: of the run.
    """
    known = set(vocabulary.classes)
    changed = {
        image_id: Relabelled(tuple(name for name in each.added if name in known), each.struck)
        for image_id, each in own.items()
    }
    return {image_id: each for image_id, each in changed.items() if each.added or each.struck}


def regions_of(own: Mapping[str, Standing], vocabulary: Vocabulary) -> dict[str, tuple[PaintedRegion, ...]]:
    """What people painted, by image.

    Args:
        own: what counts, by image.
        vocabulary: of the run.
    """
    return {image_id: each.regions(vocabulary) for image_id, each in own.items() if each.painted}


def rejected_of(own: Mapping[str, Standing]) -> frozenset[str]:
    """The images that people rejected."""
    return frozenset(image_id for image_id, each in own.items() if each.verdict == VERDICTS[REJECT])


def relabel(rows: Sequence[dict[str, Any]], relabelled: Mapping[str, Relabelled]) -> None:
    """Changes `classes` of rows of images as people said.

    Args:
        rows: with `image_id` and `classes`; changed in place.
        relabelled: by image.
    """
    for row in rows:
        if own := relabelled.get(row["image_id"]):
            row["classes"] = own.classes(row["classes"] or ())
