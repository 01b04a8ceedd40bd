"""From the words of a run file to a loaded network: by name and weights, or by a factory of the user's own.

Nothing in a weight file is executed: safetensors, or PyTorch's own format with `weights_only`.
"""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from fmwsss.cluster.models.device import pick_device
from fmwsss.cluster.models.factories import _call_factory, find_factory
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import file_sha256, load_state, state_sha256, weights_file

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import nn

    from fmwsss.core.clip.frozen_clip import FrozenClip


def load_clip(spec: ModelSpec) -> FrozenClip:
    """The frozen CLIP of a run, on this process's device, with an identity that its learned prompts are tied to.

    Raises:
        ModelError: an unknown architecture, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    from open_clip import CLIP

    from fmwsss.core.clip.frozen_clip import FrozenClip

    if spec.factory:
        model = _call_factory(spec.factory)
    elif spec.model == "toy":
        from fmwsss.core.toy.models import toy_clip

        model = toy_clip()
    else:
        model = _open_clip_model(spec)
    if not isinstance(model, CLIP):
        raise ModelError(f"clip: {spec.factory or spec.model} is a {type(model).__name__}, not an open_clip CLIP")
    # The last name alone: a path has a machine's folders, a URL perhaps a signature.
    weights = PurePosixPath(urlsplit(spec.weights).path).name if spec.weights else ""
    name = spec.factory or f"{spec.model} {weights}".strip()
    return FrozenClip(model, identity=state_sha256(model), name=name).to(pick_device())


def load_sam(spec: ModelSpec) -> Sam:
    """The SAM of a run, in evaluation mode, on this process's device.

    Raises:
        ModelError: an unknown type, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    from segment_anything.modeling import Sam

    if spec.factory:
        sam = _call_factory(spec.factory)
    elif spec.model == "toy":
        from fmwsss.core.toy.models import toy_sam

        sam = toy_sam()
    else:
        sam = _registered_sam(spec)
    if not isinstance(sam, Sam):
        raise ModelError(f"sam: {spec.factory or spec.model} is a {type(sam).__name__}, not a segment_anything Sam")
    return sam.eval().requires_grad_(False).to(pick_device())


def check(spec: ModelSpec, role: Literal["clip", "sam"]) -> dict[str, str | None]:
    """Refuses early, on the driver, what would fail on every worker; loads no network.

    Returns:
        What the manifest says of the model: its words, and the sha256 of its weight file if it has one.

    Raises:
        ModelError: an unknown model, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    about: dict[str, str | None] = {"model": spec.model, "factory": spec.factory, "weights": spec.weights}
    try:
        if spec.factory:
            find_factory(spec.factory)
        elif spec.model != "toy":
            if spec.model not in _known_models(role):
                near = difflib.get_close_matches(str(spec.model), _known_models(role), n=3)
                hint = f"; near it are {', '.join(near)}" if near else ""
                raise ModelError(f"there is no model {spec.model!r}{hint}; or give a factory")
            if not spec.weights:
                raise ModelError(f"model {spec.model!r} needs weights: a path or URL (for open_clip also a tag)")
            if role == "sam" or not _is_tag(spec):
                about["sha256"] = file_sha256(weights_file(spec))
    except ModelError as error:
        raise ModelError(f"{role}: {error}") from None
    return about


def _known_models(role: str) -> list[str]:
    if role == "sam":
        from segment_anything import sam_model_registry

        return [name for name in sam_model_registry if name != "default"]
    import open_clip

    return open_clip.list_models()


def _open_clip_model(spec: ModelSpec) -> nn.Module:
    import open_clip

    assert spec.model, spec
    assert spec.weights, spec
    source = spec.weights if _is_tag(spec) else str(weights_file(spec))
    try:
        return open_clip.create_model(spec.model, pretrained=source)
    except Exception as error:  # there are many kinds of files, and each has an error of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"clip.weights {spec.weights} could not be loaded as {spec.model}: {reason}") from None


def _registered_sam(spec: ModelSpec) -> nn.Module:
    from segment_anything import sam_model_registry

    sam = sam_model_registry[str(spec.model)]()
    try:
        sam.load_state_dict(load_state(weights_file(spec)))
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(f"sam.weights {spec.weights} do not fit sam.model {spec.model!r}: {reason}") from None
    return sam


def _is_tag(spec: ModelSpec) -> bool:
    """Whether `weights` names one of open_clip's published checkpoints rather than a file."""
    import open_clip

    return spec.weights in open_clip.list_pretrained_tags_by_model(str(spec.model))
