"""What every dataset reader returns, and the checks that all of them share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote

import pyarrow as pa

from fmwsss.core.errors import InputError

# One name of a file: letters, digits, `.`, `_` and `-`; anything else is escaped as in a URL, `%2F` for a slash.
IMAGE_ID = re.compile(r"(?!\.)(?:[A-Za-z0-9._-]|%[0-9A-F]{2})+")
MAX_ID_LENGTH = 240  # `<id>.png` must be a file name
NUM_EXAMPLES = 3  # of what is told with a count


class DatasetError(InputError):
    """A dataset, or one image of it, that can't be used as it is; one line."""


@dataclass(frozen=True)
class Source:
    """One image of a dataset.

    Attributes:
        image_id: its name in the run, and in every file name that comes from it.
        image_url: path or URL of the encoded image, or a place in a file (`jobs.images.places`).
        classes: its labels; None where they are in `annotation_url` or else are the classes of the ground truth.
        truth_url: its label PNG, for evaluation only, or another place; None where there is none.
        annotation_url: its VOC annotation (XML), where the labels are in one.
        problem: what makes it a failure already.
    """

    image_id: str
    image_url: str
    classes: tuple[str, ...] | None
    truth_url: str | None = None
    annotation_url: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Listing:
    """A dataset as it was read.

    Attributes:
        sources: its images; each id once without a problem.
        notes: what was forgiven, guessed or left out; a line each.
        questions: what may be wrong and only the user can know; a line each.
        unlabelled: images that nothing says what they show; `read_dataset` leaves them out or takes them in.
        is_told: whether the user has seen all this already.
    """

    sources: list[Source]
    notes: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    unlabelled: list[Source] = field(default_factory=list)
    is_told: bool = False

    @property
    def num_unlabelled(self) -> int:
        """How many there are that nothing says what they show."""
        return len(self.unlabelled)


SOURCES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_url", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("truth_url", pa.string()),
        ("annotation_url", pa.string()),
        ("problem", pa.string()),
    ]
)


def id_of(path: str) -> str:
    """The image id for a path below the images: what no file name may hold is escaped, so that `path_of` goes back."""
    escaped = quote(path, safe="", errors="surrogateescape").replace("~", "%7E")
    return f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped


def path_of(image_id: str) -> str:
    """The path below the images that an image id was made from."""
    return unquote(image_id, errors="surrogateescape")


def listing_of(
    sources: Iterable[Source],
    where: str,
    notes: Sequence[str] = (),
    questions: Sequence[str] = (),
    needs_labels: bool = True,
) -> Listing:
    """The images of a dataset, checked: no id twice, and those without labels left out.

    Args:
        sources: as a reader found them.
        where: the dataset in words.
        notes: of the reader.
        questions: of the reader.
        needs_labels: whether images without labels are left out.

    Raises:
        DatasetError: there are none, or none of them has labels.
    """
    listed = list(sources)
    if not listed:
        raise DatasetError(f"there are no images in {where}")
    kept = [own for own in listed if own.classes != () or own.problem or not needs_labels]
    bare = [own for own in listed if own.classes == () and not own.problem and needs_labels]
    if not kept:
        raise DatasetError(f"none of the {len(listed)} images of {where} has labels")
    checked = _checked([*kept, *bare])
    return Listing(checked[: len(kept)], list(notes), list(questions), checked[len(kept) :])


def without_labels(listing: Listing, kept: bool) -> Listing:
    """A listing whose images without labels are kept among the others, or left out with a line.

    Args:
        listing: of a reader.
        kept: whether they are.
    """
    bare = listing.unlabelled
    if not bare:
        return listing
    told = counted([own.image_id for own in bare], "image")
    if kept:
        return replace(listing, sources=[*listing.sources, *bare], notes=[*listing.notes, f"{told} without labels"])
    return replace(listing, notes=[*listing.notes, f"{told} without labels, left out"])


def _checked(sources: Sequence[Source]) -> list[Source]:
    seen: set[str] = set()
    checked = []
    for source in sources:
        problem = source.problem
        if not IMAGE_ID.fullmatch(source.image_id):
            problem = problem or "its id is no file name: letters, digits, `.`, `_` and `-`, others escaped as `%20`"
        elif len(source.image_id) > MAX_ID_LENGTH:
            problem = f"its id, which is its escaped path, has more than {MAX_ID_LENGTH} letters: shorten its name"
        elif source.image_id in seen and problem is None:
            problem = "its id occurs more than once: the first is taken"
        elif problem is None:
            seen.add(source.image_id)
        checked.append(replace(source, problem=problem))
    return checked


def counted(names: Sequence[str], word: str) -> str:
    """How many there are, with examples: `2 images (such as a, b)`.

    Args:
        names: of all; the first NUM_EXAMPLES are shown.
        word: for one of them; more than one get an s.

    Returns:
        A few words.
    """
    few = ", ".join(printable(name) for name in names[:NUM_EXAMPLES])
    return f"{len(names)} {word}{'s' * (len(names) != 1)} (such as {few})"


def printable(text: str) -> str:
    """A name as it can be printed anywhere."""
    return text.encode("utf-8", "backslashreplace").decode()


def stem_of(name: str) -> str:
    """A file name without its extension; one without extension as it is."""
    parent, slash, own = name.rpartition("/")
    stem, dot, _ = own.rpartition(".")
    return f"{parent}{slash}{stem if dot and stem else own}"


def extension_of(name: str) -> str:
    """The extension of a file name, in lower case; empty if it has none."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot and stem else ""
