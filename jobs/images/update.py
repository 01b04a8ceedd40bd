"""A dataset that has changed since a run took it: what changed is told by number, and what depends on it is made again.

Files and tables are compared first by size, time and what a store calls their content, which costs a LIST; where
something differs, by their content. Superpixels depend on the pixels of an image alone, and those of images that did
not change are kept; seeds depend on the labels too; learned prompts are kept unless one asks for others, or too much
has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from fmwsss.cluster.storage.folder import StorageError
from fmwsss.cluster.storage.ledger import Run, home_of, part_name
from fmwsss.cluster.storage.retry import redo, renew_reads, stages_after
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.declarations import Stage
from fmwsss.jobs.images import record
from fmwsss.jobs.images.image_rows import Reading, reading_of, row_or_failure
from fmwsss.jobs.images.readers.base import DatasetError, Listing
from fmwsss.jobs.images.readers.registry import read_dataset
from fmwsss.jobs.stages import StageError

RELEARN_SHARE = 0.2  # of images that changed: from there on prompts are learned anew without being asked
GONE_SHARE = 0.5  # of images that are gone: more look like a mistake
NUM_TASKS = 4
KINDS = {
    "new": "new",
    "gone": "gone",
    "pixels": "replaced",
    "labels": "with other labels",
    "truth": "with other ground truth",
}


@dataclass
class Update:
    """What differs, by image id, and the parts of the images that it is in.

    Attributes:
        ids: by one of KINDS.
        parts: by one of KINDS; those of new images are not written yet.
        rows: of RECORD, as they will be.
    """

    ids: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    parts: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, image_id: str, shard: int) -> None:
        """One image.

        Args:
            kind: what has happened to it, a key of `ids`.
            image_id: in the run.
            shard: that it is in.
        """
        self.ids[kind].append(image_id)
        self.parts[kind].add(part_name(shard))

    def words(self) -> str:
        """How many of each."""
        return ", ".join(f"{len(self.ids[kind])} {word}" for kind, word in KINDS.items() if self.ids[kind])


def bring_up_to_date(config: RunConfig, run: Run, stage: Stage, stages: Sequence[Stage], relearn: bool) -> None:
    """Compares the dataset with what the run took of it, and has made again what depends on the difference.

    Args:
        config: the run file.
        run: the run folder.
        stage: the stage of the images.
        stages: all stages of the run.
        relearn: learn prompts anew, whatever the share.

    Raises:
        StageError: most of the images are no longer there.
        DatasetError, StorageError: the images are not all taken yet, and the dataset can't be read.
    """
    own, local = run.within(stage.name)
    before = record.read_record(own, local)
    if before is None or not own.was_begun_with(local, stage.settings()):
        return  # of an earlier release, not begun yet, or refused when it begins
    is_complete = own.receipt(local) is not None
    listing = _list_again(config) if is_complete else _list(config)
    if listing is None:
        return
    now = record.rows_of(listing.sources, config.shard_rows)
    changes = record.compare(before, now)
    if len(changes.gone) > GONE_SHARE * len(before):
        raise StageError(
            f"{len(changes.gone)} of {len(before)} images of this run are no longer in the dataset: is it whole? "
            "`--as-it-was` goes on without looking; for fewer images use another run folder"
        )
    update = Update(rows=record.merged(before, now, config.shard_rows))
    if not changes:
        if update.rows != before:
            record.write_record(own, local, update.rows)  # the same images in another place
        return
    _sort_out(update, changes, before, own, reading_of(config))
    if update.words():
        _make_again(update, run, stage, stages, relearn, len(before))
        for line in (*listing.notes, *(f"? {question}" for question in listing.questions)):
            print(f"images: {line}", flush=True)
    # Last: until then the next start finds the same differences.
    record.write_record(own, local, update.rows)


def _list(config: RunConfig) -> Listing:
    return read_dataset(config.dataset, config.resolve_vocabulary().classes, config.labels.is_tagged)


def _list_again(config: RunConfig) -> Listing | None:
    """The dataset as it is now; None, and a line, where it is no longer there: the run has its images."""
    try:
        return _list(config)
    except (DatasetError, StorageError) as error:
        print(
            f"fmwsss: the dataset can't be looked at again ({error}); the run goes on with what it has", file=sys.stderr
        )
        return None


def _sort_out(
    update: Update, changes: record.Changes, before: Sequence[Mapping[str, Any]], own: Run, reading: Reading
) -> None:
    """What became of each image that differs; files that only look new are left out of it."""
    shards = {row["image_id"]: row["shard"] for row in before}
    new_shards = {row["image_id"]: row["shard"] for row in update.rows}
    for image_id in changes.gone:
        update.add("gone", image_id, shards[image_id])
    for image_id in changes.new:
        update.add("new", image_id, new_shards[image_id])
    suspects, written = set(changes.suspects), set(own.parts(record.STAGE))
    sources: dict[str, list[dict[str, Any]]] = {}
    for row in update.rows:
        if row["image_id"] in suspects and part_name(row["shard"]) in written:
            sources.setdefault(part_name(row["shard"]), []).append(row)
    look = ray.remote(_look_into).options(num_cpus=0.5)
    waiting, todo = {}, list(sources.items())
    while waiting or todo:  # a few at a time: each reads the images that it compares
        while todo and len(waiting) < NUM_TASKS:
            part, rows = todo.pop()
            waiting[look.remote(own, part, rows, reading)] = part
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        del waiting[done]
        for image_id, kind in ray.get(done):
            if kind:
                update.add(kind, image_id, shards[image_id])


def _look_into(run: Run, part: str, sources: list[dict[str, Any]], reading: Reading) -> list[tuple[str, str]]:
    """Images of one part as they are now beside what was taken: which of KINDS, or nothing."""
    table = run.read_part(record.STAGE, part, columns=["image_id", "sha256", "classes", "truth"])
    taken = {row["image_id"]: row for row in table.to_pylist()}
    found = []
    for source in sources:
        row, old = row_or_failure(source, reading), taken.get(source["image_id"])
        if "error_type" in row:
            kind = "gone" if old else ""  # it failed before too
        elif old is None or row["sha256"] != old["sha256"]:
            kind = "pixels"
        elif row["classes"] != old["classes"]:
            kind = "labels"
        else:
            kind = "truth" if row["truth"] != old["truth"] else ""
        found.append((source["image_id"], kind))
    return found


def _make_again(
    update: Update, run: Run, stage: Stage, stages: Sequence[Stage], relearn: bool, num_before: int
) -> None:
    pixels = update.parts["pixels"] | update.parts["gone"] | update.parts["new"]
    labels = pixels | update.parts["labels"]
    changed = {image_id for kind in KINDS if kind != "truth" for image_id in update.ids[kind]}
    share = len(changed) / max(1, num_before)
    is_much = share > RELEARN_SHARE
    after = stages_after(run, stage.name, [own.name for own in stages])
    of_pixels = {own.name for own in stages if own.of_pixels}
    has_learned = [name for name in after if not run.within(name)[0].parts(run.within(name)[1])]
    print(f"images: the dataset has changed: {update.words()}", flush=True)
    if has_learned and changed:
        told = f"{100 * share:.0f} % of the images changed"
        told += ": prompts are learned anew" if relearn or is_much else "; prompts are kept, --relearn learns others"
        print(f"images: {told}", flush=True)
    _keep_superpixels(update, run, home_of(stage.name))
    first = {stage.name: labels | update.parts["truth"]}
    first |= {name: pixels if name in of_pixels else labels for name in after}
    redo(run, after, first, with_learned=relearn or is_much)
    renew_reads(run, after)


def _keep_superpixels(update: Update, run: Run, home: str) -> None:
    """Puts the superpixels of images that did not change where the stage that makes their parts again finds them."""
    own = run.within(f"{home}{record.STAGE}")[0]
    written = set(own.parts("superpixels"))
    gone = {*update.ids["pixels"], *update.ids["gone"]}
    keep = ray.remote(_keep_part).options(num_cpus=0.5)
    ray.get(
        [keep.remote(own, part, gone) for part in sorted((update.parts["pixels"] | update.parts["gone"]) & written)]
    )


def _keep_part(run: Run, part: str, gone: set[str]) -> None:
    from fmwsss.jobs.images.kept_superpixels import keep

    table = run.read_part(record.STAGE, part, columns=["image_id", "sha256"])
    sha256 = dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    rows = run.read_part("superpixels", part).to_pylist()
    keep(run, {sha256[row["image_id"]]: row for row in rows if row["image_id"] in sha256.keys() - gone})
