"""Segmenters as files of a run and in actors: made from the words of a run file, stored, loaded, and kept in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmwsss.cluster.models.checkpoint import load_state
from fmwsss.cluster.models.device import pick_device
from fmwsss.cluster.models.factories import find_factory
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import weights_file
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.json_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from fmwsss.core.segmenter.base import Segmenter

ABOUT_FILE = "segmenter.json"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # as `save_pretrained` calls them


@dataclass(frozen=True)
class SegmenterSpec:
    """A segmenter as a run file names it.

    Attributes:
        network: which of the two.
        class_names: background first.
        short_side_px: the length of an image's short side that it is trained for.
        backbone: of a Mask2Former: `model_type` and settings of a backbone of `transformers`.
        options: of a Mask2Former: settings of its configuration in `transformers`.
        merge_queries: see `Mask2Former`; said anew for every prediction, and no part of what is stored.
        resnet: of a DeepLabV3+.
        weights: to begin with: a folder (path or URL) that `save_pretrained` wrote, of a whole Mask2Former or of its
            backbone; or a checkpoint of torchvision's ResNet.
        weights_sha256: of that checkpoint; one from a URL must have it.
        factory: `package.module:function`, called with the number of classes; returns a Mask2Former of `transformers`,
            or a `Segmenter`.
        clip: the run's CLIP, of use where `backbone` has `model_type: clip`.
        random_seed: of weights that are not given.
    """

    network: Literal["mask2former", "deeplabv3plus"]
    class_names: tuple[str, ...]
    short_side_px: int
    backbone: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    merge_queries: Literal["sum", "max"] = "sum"
    resnet: str = "resnet101"
    weights: str | None = None
    weights_sha256: str | None = None
    factory: str | None = None
    clip: ModelSpec | None = None
    random_seed: int = 0


def new_segmenter(spec: SegmenterSpec) -> Segmenter:
    """A segmenter before training, on the CPU.

    Raises:
        ModelError: settings that the network does not know, weights that are not there or do not fit, a factory that
            cannot be used.
    """
    from fmwsss.core.segmenter.mask2former import Mask2Former

    segmenter = _build(spec)
    if isinstance(segmenter, Mask2Former):
        segmenter.merge_queries = spec.merge_queries
    elif spec.merge_queries != "sum":
        raise ModelError("predict.merge_queries is of a Mask2Former: this segmenter has no queries")
    return segmenter


def _build(spec: SegmenterSpec) -> Segmenter:
    from fmwsss.core.segmenter.deeplab import DeepLabV3Plus
    from fmwsss.core.segmenter.mask2former import Mask2Former, new_mask2former, on_clip

    try:
        if spec.factory:
            return _from_factory(spec)
        if spec.network == "deeplabv3plus":
            model = DeepLabV3Plus(len(spec.class_names), spec.resnet, spec.random_seed)
            if spec.weights:
                state = load_state(weights_file(ModelSpec(weights=spec.weights, sha256=spec.weights_sha256)))
                missing, _ = model.resnet.load_state_dict(state, strict=False)
                if missing:
                    raise ModelError(f"{spec.weights} is no checkpoint of a {spec.resnet}: it has no {missing[0]}")
            return model
        if spec.backbone.get("model_type") == "clip":
            if len(spec.backbone) > 1 or spec.weights or spec.clip is None:
                raise ModelError(
                    "backbone {model_type: clip} is the run's own CLIP: it takes no settings and no weights"
                )
            clip = load_clip(spec.clip).cpu()
            return Mask2Former(on_clip(spec.class_names, clip, dict(spec.options), spec.random_seed))
        network = new_mask2former(spec.class_names, dict(spec.backbone), dict(spec.options), spec.random_seed)
        if spec.weights:
            _load_pretrained(network, spec.weights)
        return Mask2Former(network)
    except ValueError as error:
        raise ModelError(f"segmenter: {error}") from None


def _from_factory(spec: SegmenterSpec) -> Segmenter:
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

    from fmwsss.core.segmenter.base import Segmenter
    from fmwsss.core.segmenter.mask2former import Mask2Former

    assert spec.factory
    function = find_factory(spec.factory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.random_seed)
        made = function(len(spec.class_names))
    segmenter = Mask2Former(made) if isinstance(made, Mask2FormerForUniversalSegmentation) else made
    if not isinstance(segmenter, Segmenter):
        raise ModelError(
            f"factory {spec.factory!r} returned {type(made).__name__}, neither a Mask2Former nor a Segmenter"
        )
    if segmenter.num_classes != len(spec.class_names):
        raise ModelError(
            f"factory {spec.factory!r} returned a network of {segmenter.num_classes} classes, not "
            f"{len(spec.class_names)}; background is one of them"
        )
    return segmenter


def _load_pretrained(network: Any, weights: str) -> None:
    """Weights of a whole Mask2Former (its classes may be others) or of a backbone, from a `save_pretrained` folder."""
    folder = Folder(weights)
    kind = read_json(folder, CONFIG_FILE).get("model_type")
    target = network if kind == "mask2former" else network.model.pixel_level_module.encoder
    given = _renamed(folder, target)
    # What a backbone has beside the one that was trained, a norm behind each stage, starts anew; so does another list
    # of classes.
    allowed = ("hidden_states_norms", "class_predictor", "criterion", "num_batches_tracked")
    missing = [name for name in target.state_dict() if name not in given and not any(part in name for part in allowed)]
    if missing:
        raise ModelError(f"weights in {weights} ({kind}) do not fit: there is nothing for {missing[0]} in this size")
    target.load_state_dict(given, strict=False)


def _renamed(folder: Folder, network: Any) -> dict[str, Tensor]:
    """What a `save_pretrained` folder has for a network of `transformers`, by the network's own names.

    Files keep the names of earlier versions, and a backbone's those of the model around it; only `from_pretrained`
    knows them all. What is of another shape, or not there, is left out.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is told here, and not all of it is amiss
    try:
        with tempfile.TemporaryDirectory() as path, torch.random.fork_rng(devices=[]):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                (Path(path) / name).write_bytes(folder.read(name))
            loaded, about = type(network).from_pretrained(
                path, config=network.config, ignore_mismatched_sizes=True, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
    left_out = {*about["missing_keys"], *(entry[0] for entry in about["mismatched_keys"])}
    return {name: value for name, value in loaded.state_dict().items() if name not in left_out}


def spec_from_json(text: str) -> SegmenterSpec:
    """The specification whose `dataclasses.asdict` this is, as JSON."""
    about = json.loads(text)
    clip = ModelSpec(**about["clip"]) if about["clip"] else None
    return SegmenterSpec(**{**about, "class_names": tuple(about["class_names"]), "clip": clip})


def segmenter_files(segmenter: Segmenter, spec: SegmenterSpec) -> dict[str, bytes]:
    """A segmenter as files by name. That of a Mask2Former is a folder that `transformers` loads without us.

    Args:
        segmenter: trained.
        spec: what it was built from.

    Returns:
        File name -> bytes.
    """
    from safetensors.torch import save
    from transformers import Mask2FormerImageProcessor
    from transformers.utils.logging import disable_progress_bar

    from fmwsss.core.segmenter.base import PIXEL_MEAN, PIXEL_STD
    from fmwsss.core.segmenter.crops import MAX_ASPECT
    from fmwsss.core.segmenter.mask2former import Mask2Former

    about = json.dumps(asdict(replace(spec, merge_queries="sum")), indent=2, sort_keys=True) + "\n"
    files = {ABOUT_FILE: about.encode()}
    if not isinstance(segmenter, Mask2Former):
        state = {name: value.detach().cpu().contiguous() for name, value in segmenter.state_dict().items()}
        return {**files, WEIGHTS_FILE: save(state)}
    size = {"shortest_edge": spec.short_side_px, "longest_edge": MAX_ASPECT * spec.short_side_px}
    processor = Mask2FormerImageProcessor(
        size=size, image_mean=[value / 255 for value in PIXEL_MEAN], image_std=[value / 255 for value in PIXEL_STD],
        ignore_index=255, num_labels=len(spec.class_names),
    )  # fmt: skip
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        segmenter.network.save_pretrained(folder)
        processor.save_pretrained(folder)
        return files | {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def load_segmenter(folder: Folder, spec: SegmenterSpec) -> Segmenter:
    """The segmenter that `segmenter_files` wrote, in evaluation mode, on this process's device.

    Args:
        folder: its weights are read, and nothing that says which function to call: a run may come from anybody.
        spec: the network of the run file.

    Raises:
        StorageError: there is none.
        ModelError: it is another network than `spec` says, or a factory cannot be used here.
    """
    from safetensors.torch import load
    from transformers import PreTrainedModel

    from fmwsss.core.segmenter.mask2former import Mask2Former

    segmenter = new_segmenter(replace(spec, weights=None))
    inner: Any = segmenter.network if isinstance(segmenter, Mask2Former) else segmenter
    state, own = load(folder.read(WEIGHTS_FILE)), inner.state_dict()
    if isinstance(inner, PreTrainedModel) and not set(state) <= set(own):
        state = _renamed(folder, inner)
    fits = set(state) <= set(own) and all(value.shape == own[name].shape for name, value in state.items())
    if not fits or [name for name in own if name not in state and "criterion" not in name]:
        raise ModelError(
            f"{folder.url}/{WEIGHTS_FILE} does not fit the network of the run file, or an earlier version of this "
            "program trained it (`--from train` trains it anew)"
        )
    inner.load_state_dict(state, strict=False)
    return segmenter.eval().requires_grad_(False).to(pick_device())
