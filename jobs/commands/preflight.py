"""What `fmwsss run` looks at before Ray and torch are imported: a mistake is told in a second, not after a minute."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fmwsss.cluster.models.known_weights import Role
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import find_place
from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.errors import InputError
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.images import digest
from fmwsss.jobs.images.image_rows import demand_indices, reading_of
from fmwsss.jobs.images.places import file_of
from fmwsss.jobs.images.readers.base import DatasetError, Listing
from fmwsss.jobs.images.readers.class_names import ClassNames
from fmwsss.jobs.images.readers.registry import read_dataset, remember

IMAGES_RECEIPT = "images/_receipt.json"


def look(config: RunConfig) -> None:
    """Looks at the run folder, the files of weights, the dataset with its labels, and the free space; prints lines.

    Raises:
        ValueError: something of it can't be used; one line.
    """
    folder = Folder(config.run)
    print(f"run: {folder.url}", flush=True)
    demand_writable(folder)
    demand_weights("clip", config.clip.spec())
    demand_weights("sam", config.sam.spec())
    if folder.exists(IMAGES_RECEIPT):
        print("images: complete; the dataset is compared with them", flush=True)
        return  # it is listed once, where it is compared
    print("images: looking at the dataset", flush=True)
    classes = config.resolve_vocabulary().classes
    listing = read_dataset(config.dataset, classes, config.labels.is_tagged)
    for line in digest.of_listing(listing, classes):
        print(f"images: {line}", flush=True)
    demand_labels(listing, classes)
    demand_indices(listing.sources, reading_of(config))
    demand_space(folder, listing)
    remember(config.dataset, classes, listing)


def demand_writable(folder: Folder) -> None:
    """Looks whether the run folder can be written.

    Args:
        folder: of the run, which may not be there yet.

    Raises:
        ValueError: nothing can be written to it.
    """
    if not folder.is_local:
        folder.probe()
        return
    place = next(path for path in [Path(folder.url), *Path(folder.url).parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise InputError(f"run: nothing can be written to {folder.url}: {place}: {why}") from None


def demand_weights(role: Role, spec: ModelSpec) -> None:
    """Looks whether weights that are named by a path are there; a known name or a URL is left to the fetching.

    Args:
        role: which model of the run file it is.
        spec: of the model.

    Raises:
        ModelError: no file has that path.
    """
    if find_place(spec, role) is not None:
        return  # it has a name by which it is fetched
    weights = spec.weights or ""
    is_path = "://" not in weights and (
        os.sep in weights or Path(weights).suffix in (".pth", ".pt", ".bin", ".safetensors")
    )
    if is_path and not Path(weights).expanduser().is_file():
        raise ModelError(f"{role}: no weights at {weights}; give the path of a checkpoint, or an s3:// or https:// URL")


def demand_labels(listing: Listing, classes: tuple[str, ...]) -> None:
    """Looks whether at least one image of a dataset can be used, with labels that are classes of the run.

    Args:
        listing: from a reader.
        classes: of the run.

    Raises:
        DatasetError: every image would fail; the first one says why.
    """
    names = ClassNames(classes)
    good = [
        own for own in listing.sources if not own.problem and (own.classes is None or all(map(names.find, own.classes)))
    ]
    if not good:
        first = listing.sources[0]
        why = first.problem or (listing.questions[0] if listing.questions else "its labels are no classes")
        raise DatasetError(f"none of the {len(listing.sources)} images can be used; {first.image_id}: {why}")


def demand_space(folder: Folder, listing: Listing) -> None:
    """Looks whether a local disk has room for the images, which the run keeps a copy of.

    Args:
        folder: of the run; one in an object store is not asked.
        listing: from a reader; images that are not on this machine count nothing.

    Raises:
        ValueError: the disk has fewer free bytes than the images have.
    """
    if not folder.is_local:
        return
    files = {file_of(own.image_url) for own in listing.sources}
    num_bytes = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    place = next(path for path in [Path(folder.url), *Path(folder.url).parents] if path.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise InputError(
            f"run: the images have {num_bytes / 2**30:.1f} GiB, and {folder.url} has {free / 2**30:.1f} GiB left: "
            "choose another run folder"
        )
