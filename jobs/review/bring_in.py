"""Corrections that came since the last start: the seeds of those images, and what depends on them, are made again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fmwsss.cluster.storage.ledger import INPUTS, Run, home_of, part_name
from fmwsss.cluster.storage.retry import redo, stages_after
from fmwsss.core.schemas import REVIEW
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.review.applied import applied_rows
from fmwsss.jobs.review.corrections import APPLIED_FILE, FOLDER, ReviewLog, Standing, standing

IMAGES, PAINTED = "images", "seeds/fine"  # what people paint is laid over the fine seeds; labels are those of all
RECORD = "_dataset.parquet"
NOTHING = Standing()


def bring_in(run: Run, stages: Sequence[Stage], due: Collection[str], relearn: bool) -> None:
    """Has made again what corrections change that came since the last start; tells how many.

    Args:
        run: the run folder.
        stages: all stages of the run.
        due: names of those that are made now.
        relearn: learn anew what was learned from corrected labels and seeds.
    """
    if PAINTED not in {stage.name for stage in stages} or not run.folder.child(FOLDER).list():
        return
    old_rows, rows = applied_rows(run), ReviewLog(run.folder).rows()
    if [row["correction_id"] for row in old_rows] == [row["correction_id"] for row in rows]:
        return
    before, now = standing(old_rows), standing(rows)
    ids = before.keys() | now.keys()
    labels = {one for one in ids if before.get(one, NOTHING).labels_key != now.get(one, NOTHING).labels_key}
    painted = {one for one in ids if before.get(one, NOTHING).painted_key != now.get(one, NOTHING).painted_key}
    if labels or painted:
        after = _after(run, stages, bool(labels))
        learned = [name for name in after if not run.within(name)[0].parts(run.within(name)[1])]
        again = [name for name in after if relearn or name not in learned]
        if any(name not in due and run.within(name)[0].receipt(run.within(name)[1]) for name in again):
            print(f"review: {len(labels | painted)} corrected images wait for `fmwsss run` of all stages", flush=True)
            return
        _make_again(run, after, learned, labels, painted, relearn)
    # Last: until then the next start finds the same differences.
    run.folder.child(FOLDER).write_table(APPLIED_FILE, rows, REVIEW)


def _after(run: Run, stages: Sequence[Stage], has_labels: bool) -> dict[str, list[str]]:
    """The stages that were begun and depend on what was corrected, with those that each reads."""
    names, of_pixels = [stage.name for stage in stages], {stage.name for stage in stages if stage.of_pixels}
    if has_labels:
        found = stages_after(run, IMAGES, names)
        return {name: reads for name, reads in found.items() if name not in of_pixels}
    is_begun = run.folder.child(PAINTED).exists(INPUTS)
    return {**({PAINTED: []} if is_begun else {}), **stages_after(run, PAINTED, names)}


def _make_again(
    run: Run,
    after: Mapping[str, list[str]],
    learned: Sequence[str],
    labels: set[str],
    painted: set[str],
    relearn: bool,
) -> None:
    parts = _parts_of(run, labels | painted)
    gone = len(labels | painted) - len(parts)
    print(f"review: {len(parts)} images corrected since the last start", flush=True)
    if gone:
        print(f"review: {gone} corrected images are not in this run", flush=True)
    if learned and not relearn:
        print(f"review: {', '.join(learned)} stay as they are; --relearn learns them again", flush=True)
    # Parts of a run in the run are of other images.
    own = [name for name in after if name not in learned and not home_of(name)]
    changed = {name: {parts[one] for one in labels if one in parts} for name in own}
    changed[PAINTED] = changed.get(PAINTED, set()) | {parts[one] for one in painted if one in parts}
    relabelled = _by_part(parts, labels)
    images = {**dict.fromkeys(own, relabelled), PAINTED: _by_part(parts, labels | painted)}
    # Learned anew, everything that is made with it is another one.
    redo(run, after, changed, relearn, None if relearn and learned else images)


def _by_part(parts: Mapping[str, str], ids: set[str]) -> dict[str, set[str]]:
    """Some images by the part that they are in."""
    found: dict[str, set[str]] = {}
    for one in ids & parts.keys():
        found.setdefault(parts[one], set()).add(one)
    return found


def _parts_of(run: Run, ids: set[str]) -> dict[str, str]:
    """The part that each of some images is in."""
    folder = run.folder.child(IMAGES)
    if folder.exists(RECORD):
        rows = folder.read_table(RECORD, ["image_id", "shard"]).to_pylist()
        return {row["image_id"]: part_name(row["shard"]) for row in rows if row["image_id"] in ids}
    found = {}
    for part in run.parts(IMAGES):
        there = run.read_part(IMAGES, part, columns=["image_id"])["image_id"].to_pylist()
        found |= {one: part for one in there if one in ids}
    return found
