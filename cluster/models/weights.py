"""Weight files on this machine: found, fetched once, and compared with their sha256 on every open."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fmwsss.cluster.models.download import DownloadError, Report, download, is_reachable, shown
from fmwsss.cluster.models.known_weights import KnownWeights, Role, find_known
from fmwsss.cluster.models.spec import ModelError, ModelSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Place:
    """Where one file is published and where it goes on this machine.

    Attributes:
        name: what `fmwsss fetch` takes: a known name, or an address.
        url: of the file.
        sha256: of the file.
    """

    name: str
    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Its place in this machine's cache, named by its content."""
        return weights_cache() / (self.sha256 + PurePosixPath(urlsplit(self.url).path).suffix)


def weights_file(spec: ModelSpec, role: Role | None = None) -> Path:
    """The weights as a local file, fetched once per machine and compared with their sha256.

    Args:
        spec: of the network.
        role: what the network is; known names and tags are looked up by it.

    Raises:
        ModelError: no such file, another sha256, or it cannot be fetched; the message says what to do.
    """
    place = find_place(spec, role)
    if place is not None and (spec.sha256 is None or spec.sha256.lower() == place.sha256):
        hub = None if place.path.exists() else _in_hub_cache(spec, role)
        return hub or cached(place, role)
    if role == "clip" and (tag := _tag(spec)):
        return _verified(_hub_file(spec, tag), spec)
    if spec.weights is None:
        raise ModelError(f"model {spec.model!r} needs weights: a path or URL (for open_clip also a tag)")
    path = Path(os.path.expanduser(spec.weights))
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no weights"
        raise ModelError(f"{what} at {spec.weights}; give the path of a checkpoint, or an s3:// or https:// URL")
    return _verified(path, spec)


def find_place(spec: ModelSpec, role: Role | None) -> Place | None:
    """Where the weights of a network are to be fetched; None where they are a path or a tag that only the hub has.

    Args:
        spec: of the run file.
        role: clip or sam; None for weights of a segmenter.

    Returns:
        Name, URL and sha256.

    Raises:
        ModelError: an address without a sha256.
    """
    known = find_known(role, spec.model, spec.weights) if role else None
    if known is not None:
        return Place(known.name, known.url, known.sha256)
    if spec.weights is None or "://" not in spec.weights:
        return None
    if not spec.sha256:
        raise ModelError(f"weights from a URL need `sha256`: {spec.weights}")
    return Place(spec.weights, spec.weights, spec.sha256.lower())


def place_of(known: KnownWeights) -> Place:
    """Where a file of the table is."""
    return Place(known.name, known.url, known.sha256)


def cached(place: Place, role: Role | None = None, report: Report | None = None, num_tries: int = 3) -> Path:
    """The file of this machine's cache, fetched if it is not there or damaged.

    Args:
        place: of the file.
        role: for the message.
        report, num_tries: see `download`.

    Raises:
        ModelError: it is not there and cannot be fetched.
    """
    path = place.path
    if is_whole(place):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # All replicas of a machine start at once; the first one fetches, the others wait for it.
        lock = (path.parent.parent / f"{path.name}.lock").open("w")
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise ModelError(f"{path.parent} cannot be written: {reason}; XDG_CACHE_HOME names another place") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(place):
            was_damaged = path.exists()
            try:
                download(place.url, path, place.sha256, report, num_tries)
            except DownloadError as error:
                state = "is damaged" if was_damaged else "is not on this machine"
                give = f"give the path of the file as `{role}.weights`" if role else "give its path"
                raise ModelError(
                    f"the file of {_shown(place.name)} {state}, and {error}; with internet `fmwsss fetch "
                    f"{_shown(place.name)}` fetches it, and its copy goes to {path} here, or {give}"
                ) from None
    return path


def _shown(name: str) -> str:
    return shown(name) if "://" in name else name


def is_whole(place: Place) -> bool:
    """Whether the file is on this machine, with the right sha256."""
    return place.path.exists() and file_sha256(place.path) == place.sha256


def weights_cache() -> Path:
    """The folder on this machine that keeps fetched weights, by their sha256.

    Raises:
        ModelError: the user has no home folder.
    """
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    if cache.startswith("~"):
        raise ModelError("there is no home folder for the cache of weights: set HOME or XDG_CACHE_HOME")
    return Path(cache) / "fmwsss" / "weights"


def keep_compiled_code() -> None:
    """Lets torch.compile keep its code beside the weights, so that the next replica on this disk need not compile."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(weights_cache().parent / "compiled"))


def tag_settings(spec: ModelSpec) -> dict[str, Any]:
    """What open_clip says of a tag: activation, mean and deviation of its images; empty for a file."""
    return _tag(spec) or {}


def _tag(spec: ModelSpec) -> dict[str, Any] | None:
    """open_clip's entry for a published checkpoint that `weights` names, with its plain or its quickgelu name."""
    from open_clip.pretrained import get_pretrained_cfg

    if not spec.model or not spec.weights:
        return None
    return get_pretrained_cfg(spec.model, spec.weights) or None


def _in_hub_cache(spec: ModelSpec, role: Role | None) -> Path | None:
    """The hub's own copy of a known file, where this machine has it already; its values are the same."""
    tag = _tag(spec) if role == "clip" else None
    path = _hub_path(tag, fetch=False) if tag else None
    return path if path is not None and (spec.sha256 is None or file_sha256(path) == spec.sha256.lower()) else None


def _hub_file(spec: ModelSpec, tag: dict[str, Any]) -> Path:
    path = _hub_path(tag, fetch=False) or _hub_path(tag, fetch=True)
    if path is None:
        raise ModelError(
            f"the weights {spec.model}/{spec.weights} are not on this machine and could not be fetched from the hub "
            f"({tag.get('hf_hub') or tag.get('url')}); fetch them where there is internet and give the path of the file"
        )
    return path


def _hub_path(tag: dict[str, Any], fetch: bool) -> Path | None:
    """The file of a tag in the hub's cache, compared with the sum that the hub names it by."""
    import huggingface_hub
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    from open_clip.pretrained import download_pretrained

    hub = tag.get("hf_hub", "")
    repository, _, file = hub.rpartition("/")
    for name in [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
        found = huggingface_hub.try_to_load_from_cache(repository, name) if repository else None
        if isinstance(found, str):
            blob = Path(found).resolve()
            if len(blob.name) == 64 and file_sha256(blob) != blob.name:
                raise ModelError(f"{found} is damaged: its sha256 is not the one that it is named by; delete {blob}")
            return Path(found)
    if not fetch or not is_reachable(huggingface_hub.constants.ENDPOINT if hub else tag["url"]):
        return None
    try:
        return Path(download_pretrained(tag))
    except Exception:  # of several clients, each with errors of its own
        return None


def _verified(path: Path, spec: ModelSpec) -> Path:
    if spec.sha256 and (found := file_sha256(path)) != spec.sha256.lower():
        raise ModelError(
            f"{spec.weights} has sha256 {found}, the run has {spec.sha256.lower()}: another or a damaged file"
        )
    return path


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal. A process reads a file again where its size or times have changed.

    Raises:
        ModelError: it can't be read.
    """
    try:
        about = path.stat()
        return _file_sha256(str(path), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {os.strerror(error.errno or errno.EIO).lower()}") from None


@functools.lru_cache(maxsize=64)
def _file_sha256(path: str, *_state: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        while block := source.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def state_sha256(model: nn.Module) -> str:
    """The sha256 of a network's parameters and buffers, names included, whatever file they came from."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
