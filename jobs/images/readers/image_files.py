"""Which files of a folder are images, by their names or else by their first bytes, and which one a table means."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fmwsss.cluster.storage.folder import Folder, StorageError
from fmwsss.jobs.images.readers.base import DatasetError, counted, extension_of, id_of, stem_of

EXTENSIONS = frozenset(
    {
        "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm",
        "pbm", "pnm", "jp2", "j2k", "jpx", "avif", "heic", "heif",
    }
)  # fmt: skip
# Not looked into: they never are images that this system reads.
OTHER_EXTENSIONS = frozenset(
    {
        "txt", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "md", "rst", "html", "pdf", "svg", "parquet",
        "arrow", "npy", "npz", "mat", "h5", "pkl", "pt", "pth", "zip", "gz", "tar", "tgz", "7z", "rar", "py", "ipynb",
        "log", "ini", "db", "lock", "mp4", "mov", "avi", "mp3", "wav", "doc", "docx", "xls", "xlsx", "cache",
        "safetensors",
    }
)  # fmt: skip
SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
NUM_BYTES = 16  # at the beginning of a file, by which it is known
NUM_READERS = 16


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder and of its sub-folders.

    Attributes:
        folder: where they are.
        names: paths below the folder, sorted.
        notes: what was left out, a line for each reason.
    """

    folder: Folder
    names: list[str]
    notes: list[str] = field(default_factory=list)

    def url(self, name: str) -> str:
        """Path or URL of an image."""
        return f"{self.folder.url}/{name}"

    def ids(self) -> dict[str, str]:
        """The id of each name: its path without extension, or with it where two files would have the same."""
        stems: dict[str, int] = {}
        for name in self.names:
            stems[stem_of(name)] = stems.get(stem_of(name), 0) + 1
        # `a.jpg.png` beside `a.jpg`: the stem of the one is the name of the other.
        taken = set(self.names)
        is_own = {
            name: stems[stem] == 1 and (stem == name or stem not in taken)
            for name, stem in ((name, stem_of(name)) for name in self.names)
        }
        return {name: id_of(stem_of(name) if is_own[name] else name) for name in self.names}


def find_images(url: str, without: Collection[str] = ()) -> ImageFiles:
    """The images of a folder and its sub-folders: one LIST; only files of unknown extensions are looked into.

    Args:
        url: the folder, a path or URL.
        without: folders below it whose images are something else, such as ground truth.

    Raises:
        DatasetError: it is no folder, or has no images.
    """
    if url.partition("://")[0].lower() in ("http", "https"):
        raise DatasetError(f"{url}: a web server can't list its files; fetch them, or give a folder or an s3:// URL")
    folder = Folder(url)
    if folder.is_local and not Path(folder.url).is_dir():
        is_there = Path(folder.url).exists()
        raise DatasetError(f"{folder.url} is {'a file: name its folder' if is_there else 'not there; check the path'}")
    apart = tuple(f"{Folder(other).url}/" for other in without)
    left_out: dict[str, list[str]] = {}
    images, unknown = [], []
    for name in folder.list():
        if f"{folder.url}/{name}".startswith(apart):
            continue
        parts = name.lower().split("/")
        if any(part.startswith(".") or part in SYSTEM_NAMES for part in parts):
            left_out.setdefault("of the operating system (hidden)", []).append(name)
        elif extension_of(name) in EXTENSIONS:
            images.append(name)
        elif extension_of(name) in OTHER_EXTENSIONS:
            left_out.setdefault("that are no images", []).append(name)
        else:
            unknown.append(name)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for name, is_one in zip(unknown, pool.map(lambda name: _begins_as_image(folder, name), unknown), strict=True):
            (images if is_one else left_out.setdefault("that are no images", [])).append(name)
    notes = [f"{counted(names, 'file')} {reason}, left out" for reason, names in left_out.items()]
    if not images:
        raise DatasetError(f"there are no images in {folder.url}{'; ' + '; '.join(notes) if notes else ''}")
    images.sort()
    return ImageFiles(folder, images, notes)


class Finder:
    """Finds the file that a table means by a name: exactly, or else where only one fits; what was forgiven is told.

    Forgiven are: the folder of the images or a part of it before the name, a missing or another extension, case,
    leading zeros that a spreadsheet took away, `42.0`, and the two ways to write an accented letter.
    """

    def __init__(self, files: ImageFiles) -> None:
        self._names = set(files.names)
        self._folder = f"{files.folder.url}/"
        self._by: list[tuple[str, dict[str, list[str]]]] = [
            ("without extension", _index(files.names, stem_of)),
            ("with another accent, case or extension", _index(files.names, lambda name: _loose(stem_of(name)))),
            ("without its folder", _index(files.names, lambda name: name.rpartition("/")[2])),
            ("without its folder", _index(files.names, lambda name: _loose(stem_of(name).rpartition("/")[2]))),
            ("without leading zeros", _index(files.names, lambda name: _number(stem_of(name)))),
        ]
        self.forgiven: dict[str, list[str]] = {}

    def find(self, given: str) -> str | None:
        """The name of the file; None if there is none.

        Raises:
            DatasetError: several fit.
        """
        given = given.strip().replace("\\", "/").removeprefix(self._folder)
        if given in self._names:
            return given
        (_, stems), (_, loose), (_, bases), (_, loose_bases), (_, numbers) = self._by
        shorter = _suffixes(given)
        # A name that only says more folders than there are is exact, after them.
        for name in shorter:
            if name in self._names:
                return self._forgive("with folders before it", given, name)
        tries: list[tuple[str, list[str] | None]] = [("", stems.get(given))]
        tries += [("with folders before it", stems.get(name)) for name in shorter]
        own = stem_of(given) if extension_of(given) in EXTENSIONS else given
        tries += [("in other case, accents or extension", loose.get(_loose(name))) for name in (own, *_suffixes(own))]
        base = given.rpartition("/")[2]
        if "/" not in given:
            tries += [("without its folder", bases.get(base)), ("without its folder", loose_bases.get(_loose(own)))]
        if number := _number(own):
            tries.append(("without leading zeros", numbers.get(number)))
        for how, found in tries:
            if found and len(found) > 1:
                raise DatasetError(f"fits {', '.join(found[:3])}: write the whole name")
            if found:
                return self._forgive(how, given, found[0]) if how else found[0]
        return None

    def notes(self) -> list[str]:
        """What was forgiven, a line each."""
        return [f"{counted(names, 'name')} in the table found {how}" for how, names in self.forgiven.items()]

    def _forgive(self, how: str, given: str, name: str) -> str:
        self.forgiven.setdefault(how, []).append(f"{given} for {name}")
        return name


def _index(names: Iterable[str], key) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        if word := key(name):
            found.setdefault(word, []).append(name)
    return found


def _suffixes(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ["/".join(parts[index:]) for index in range("/".join(parts) == name, len(parts))]


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _number(stem: str) -> str:
    digits = stem.removesuffix(".0")
    return str(int(digits)) if digits.isascii() and digits.isdecimal() and len(digits) < 40 else ""


def _begins_as_image(folder: Folder, name: str) -> bool:
    try:
        return is_image(folder.read_range(name, 0, NUM_BYTES))
    except StorageError:
        return False


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is an image of a format that is read."""
    begins = (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n",
        b"GIF87a",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"\xff\x4f\xff\x51",
        b"\0\0\0\x0cjP",
    )
    is_boxed = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    is_pnm = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace()
    is_bitmap = head[:2] == b"BM" and head[6:10] == b"\0\0\0\0"
    return head.startswith(begins) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or is_boxed or is_pnm or is_bitmap
