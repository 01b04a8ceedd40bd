"""What `fmwsss plan` looks at before anything is run: each check says what it found, or raises what is wrong."""

from __future__ import annotations

import random
import shutil
import statistics
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fmwsss.cluster.models.loaders import check
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.errors import FmwsssError, InputError
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images import digest
from fmwsss.jobs.images.image_rows import demand_indices, image_row, reading_of
from fmwsss.jobs.images.readers.base import Source
from fmwsss.jobs.images.readers.registry import read_dataset
from fmwsss.jobs.prompts import reuse as taken_prompts
from fmwsss.jobs.segmenter import train

NUM_DECODED = 64  # images that are read and decoded
NUM_EXAMPLES = 5  # of what is wrong, that are named


def folder(run_folder: Folder) -> str:
    """Writes, lists, reads and deletes one small file; tells how long a request takes.

    Raises:
        InputError: what comes back is not what was written.
    """
    run_folder.probe()
    is_new = run_folder.is_local and not Path(run_folder.url).exists()
    name = f"_plan/{uuid.uuid4().hex}"
    began_s = time.monotonic()
    run_folder.write(name, b"a run was planned here")
    if run_folder.read(name) != b"a run was planned here" or name not in run_folder.list("_plan/"):
        raise InputError(f"{run_folder.url} does not give back what was written")
    run_folder.delete([name])
    milliseconds = 1000 * (time.monotonic() - began_s) / 4
    remove_empty(run_folder, is_new)
    return f"{run_folder.url} can be written, listed, read and deleted ({milliseconds:.0f} ms a request)"


def remove_empty(folder: Folder, is_new: bool) -> None:
    """Takes away what planning left in a local folder, and the folder itself if it is new.

    Args:
        folder: of the run.
        is_new: whether it was made by planning.
    """
    if folder.is_local:
        shutil.rmtree(Path(folder.url, "_plan"), ignore_errors=True)
        if is_new and not folder.list():
            shutil.rmtree(folder.url, ignore_errors=True)


def prompts(config: RunConfig, vocabulary: Vocabulary) -> str:
    """Whether the prompts of another run can be taken.

    Args:
        config: the run file.
        vocabulary: of the run.

    Returns:
        What was found, a line.
    """
    for which in ("classification", "segmentation"):
        data = taken_prompts.read_prompts(config, which)
        taken_prompts.check(config.clip.spec(), vocabulary, data, f"{config.prompts} ({which})")
    return f"both sets of {config.prompts} fit this CLIP and this vocabulary; none are learned"


def segmenter(config: RunConfig) -> str:
    """Whether the engine is there, and the images that the segmenter will be judged on.

    Raises:
        InputError: none of them can be used.
    """
    section = config.segmenter
    assert section
    engine = train.choose_engine(section)
    if section.validation is None:
        return f"engine {engine}, no validation images"
    usable = [
        source
        for source in read_dataset(section.validation, config.resolve_vocabulary().classes).sources
        if not source.problem
    ]
    if not usable:
        raise InputError("segmenter.validation: none of its images can be used")
    return f"engine {engine}, {len(usable)} validation images"


def model(role: Any, spec: ModelSpec) -> str:
    """Whether the weights are there, fit the network and, where the run file says so, are the right ones.

    Args:
        role: clip or sam.
        spec: of the run file.

    Returns:
        What was found, a line.
    """
    about = check(spec, role)
    told = [str(spec.factory or about["model"])]
    told += [f"weights {spec.weights}"] if spec.weights else []
    told += [f"sha256 {about['sha256']}"] if about.get("sha256") else []
    told += [str(about["note"])] if about.get("note") else []
    return ", ".join(told)


def images(config: RunConfig, sources: list[Source]) -> str:
    """Lists the data set into `sources`.

    Args:
        config: the run file.
        sources: filled here.

    Returns:
        What was found, a line.
    """
    classes = config.resolve_vocabulary().classes
    listing = read_dataset(config.dataset, classes, config.labels.is_tagged)
    sources += listing.sources
    for line in digest.of_listing(listing, classes):
        print(f"     {line}", flush=True)
    problems = Counter(source.problem for source in sources if source.problem)
    few = "".join(f"; {count}: {problem}" for problem, count in problems.most_common(NUM_EXAMPLES))
    _demand_few(config, sum(problems.values()), len(sources), f"can't be used{few}")
    return f"{len(sources)}, of which {sum(problems.values())} can't be used{few}"


def labels(config: RunConfig, vocabulary: Vocabulary, sources: list[Source]) -> str:
    """Whether labels are classes of the vocabulary, and which classes never occur.

    Args:
        config: the run file.
        vocabulary: of the run.
        sources: all images of the dataset.

    Returns:
        What was found, a line.
    """
    unknown: Counter[str] = Counter()
    bad, used = 0, set()
    labelled = [source for source in sources if source.classes and not source.problem]
    for source in labelled:
        names = [name for name in source.classes or () if name not in vocabulary.classes]
        used.update(set(source.classes or ()) - set(names))
        unknown.update(names)
        bad += bool(names)
    if not labelled:
        return "in annotations or masks; read with the images"
    strange = ", ".join(f"{name!r} ({count})" for name, count in unknown.most_common(NUM_EXAMPLES))
    _demand_few(config, bad, len(sources), f"have labels that the vocabulary has not: {strange}")
    unused = [name for name in vocabulary.classes if name not in used]
    told = f"{len(used)} of {len(vocabulary.classes)} classes occur"
    told += f" (never: {', '.join(unused[:NUM_EXAMPLES])}{', ...' if len(unused) > NUM_EXAMPLES else ''})" * bool(
        unused
    )
    return told + (f"; {bad} images have others: {strange}" if bad else "")


def pixels(config: RunConfig, vocabulary: Vocabulary, sources: list[Source]) -> str:
    """Reads and decodes a sample of the images.

    Args:
        config: the run file.
        vocabulary: of the run.
        sources: all images of the dataset.

    Returns:
        What was found, a line.

    Raises:
        InputError: none of the sample can be used.
    """
    usable = [source for source in sources if not source.problem]
    reading = reading_of(config)
    demand_indices(usable, reading)
    sample = random.Random(config.random_seed).sample(usable, min(NUM_DECODED, len(usable)))

    def look(source: Source) -> dict[str, Any] | str:
        try:
            return image_row(source.__dict__, reading)
        except FmwsssError as error:
            return f"{source.image_id}: {error}"

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(look, sample))
    good = [row for row in rows if isinstance(row, dict)]
    bad = [row for row in rows if isinstance(row, str)]
    few = "; ".join(bad[:NUM_EXAMPLES])
    if not good:
        raise InputError(f"of {len(sample)} images that were read none can be used: {few}")
    for line in digest.of_rows(good, vocabulary.classes)[-5:]:
        print(f"     of the sample: {line}", flush=True)
    _demand_few(config, len(bad), len(sample), f"of a sample can't be used: {few}")
    kib = statistics.mean(len(row["image"]) for row in good) / 1024
    sides = sorted(row["height_px"] * row["width_px"] for row in good)
    size = f"{kib:.0f} KiB and {sides[len(sides) // 2] / 1e6:.2f} Mpx an image"
    return f"{len(good)} of {len(sample)} of a sample can be decoded, {size}{'; ' + few if few else ''}"


def _demand_few(config: RunConfig, num_bad: int, num_all: int, what: str) -> None:
    allowed = max(config.max_failures * num_all, 1 if config.max_failures else 0)
    if num_bad and (num_bad == num_all or num_bad > allowed):
        raise InputError(f"{num_bad} of {num_all} images {what} (max_failures: {100 * config.max_failures:g} %)")


def space(config: RunConfig, num_bytes: float) -> str:
    """Whether a local disk has room for what will be written.

    Args:
        config: the run file.
        num_bytes: that the run will write.

    Returns:
        What was found, a line.

    Raises:
        InputError: there is less room than that.
    """
    folder = Folder(config.run)
    needed = f"{num_bytes / 2**30:.2f} GiB will be written"
    if not folder.is_local:
        return needed
    place = next(path for path in [Path(folder.url), *Path(folder.url).parents] if path.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise InputError(f"{needed}, and {folder.url} has {free / 2**30:.2f} GiB left")
    return f"{needed}, {free / 2**30:.1f} GiB are free"
