"""Builds models from a configuration: by name and checkpoint, or by a user's factory.

Nothing in a weight file is executed (`checkpoint`).
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fmwsss.cluster.models.checkpoint import Checkpoint, demand_fit, fill, read_checkpoint
from fmwsss.cluster.models.device import pick_device
from fmwsss.cluster.models.factories import _call_factory, find_factory
from fmwsss.cluster.models.known_weights import QUICKGELU, Role, is_of_openai
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import file_sha256, state_sha256, tag_settings, weights_file

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from fmwsss.core.clip.frozen_clip import FrozenClip

Network = Any  # of torch, which is imported where one is made
MOBILE_SAM = "vit_t"
# What a file may have or lack: constants, and what neither cosines nor masks read.
_OPTIONAL = {
    "clip": ("attn_mask", "text.attn_mask", "logit_bias"),
    "sam": ("pixel_mean", "pixel_std", "image_encoder.norm_head.", "image_encoder.head."),
}
_SUPPORTED = "supported are open_clip's own vision transformers (ViT-*) of OpenAI, LAION, DataComp, DFN and MetaCLIP"


def load_clip(spec: ModelSpec) -> FrozenClip:
    """The frozen CLIP of a run, on this process's device, with an identity that its learned prompts are tied to.

    Raises:
        ModelError: an unknown or unsupported architecture, missing weights, a wrong sha256, a factory that cannot be
            imported.
    """
    if spec.factory:
        model = _call_factory(spec.factory)
    elif spec.model == "toy":
        from fmwsss.core.toy.models import toy_clip

        model = toy_clip()
    else:
        path = weights_file(spec, "clip")
        checkpoint = read_checkpoint(path)
        model = _new_clip(spec, _has_quickgelu(spec, path, checkpoint))
        fill(model, _named_as(model, checkpoint), _does_not_fit(spec, "clip"), _OPTIONAL["clip"])
    # The last name alone: a path has a machine's folders, a URL perhaps a signature.
    weights = PurePosixPath(urlsplit(spec.weights).path).name if spec.weights else ""
    identity = state_sha256(model)
    _demand_same_state(spec, identity)
    return _frozen(spec, model, identity, spec.factory or f"{spec.model} {weights}".strip()).to(pick_device())


def load_sam(spec: ModelSpec) -> Sam:
    """The SAM of a run, in evaluation mode, on this process's device.

    Raises:
        ModelError: an unknown type, missing weights, a wrong sha256, a factory that cannot be imported.
    """
    from segment_anything.modeling import Sam

    if spec.factory:
        sam = _call_factory(spec.factory)
        if spec.sha256:
            _demand_same_state(spec, state_sha256(sam))
    elif spec.model == "toy":
        from fmwsss.core.toy.models import toy_sam

        sam = toy_sam()
    else:
        sam = _new_sam(spec)
        checkpoint = read_checkpoint(weights_file(spec, "sam"))
        fill(sam, checkpoint.tensors, _does_not_fit(spec, "sam"), _OPTIONAL["sam"])
    if not isinstance(sam, Sam):
        raise ModelError(f"sam: {spec.factory or spec.model} is a {type(sam).__name__}, not a segment_anything Sam")
    return sam.eval().requires_grad_(False).to(pick_device())


def check(spec: ModelSpec, role: Role) -> dict[str, str | None]:
    """Refuses early, on the driver, what would fail on every worker; reads names and shapes alone of a weight file.

    Args:
        spec: of the run file.
        role: clip or sam.

    Returns:
        What the manifest says of the model: its words, with the activation in the name of the architecture; the
        sha256 of its weight file if it has one; perhaps a `note` for the user.

    Raises:
        ModelError: an unknown or unsupported model, weights that are missing or of another network, a wrong sha256, a
            factory that cannot be imported.
    """
    about: dict[str, str | None] = {"model": spec.model, "factory": spec.factory, "weights": spec.weights}
    try:
        if spec.factory:
            find_factory(spec.factory)
        elif spec.model != "toy":
            _demand_known(spec, role)
            about |= _look_into(spec, role)
    except ModelError as error:
        raise ModelError(f"{role}: {error}") from None
    return about


def factory_sha256(spec: ModelSpec, role: Role) -> str:
    """What names the weights that a factory gives: the sha256 of its network's state.

    In a process of its own, whose memory is gone afterwards: a driver holds no network.

    Args:
        spec: with a factory.
        role: clip or sam.

    Returns:
        Hexadecimal digits.

    Raises:
        ModelError: the factory fails, or gives something else than the run file's role asks for.
    """
    code = (
        "import sys; from fmwsss.cluster.models.loaders import loaded_sha256; "
        "from fmwsss.cluster.models.spec import ModelSpec; "
        "print(loaded_sha256(ModelSpec(factory=sys.argv[1]), sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(spec.factory), role], capture_output=True, text=True, env=environment
    )
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    if result.returncode:
        reason = lines[-1] if lines else f"its process ended with {result.returncode}"
        raise ModelError(f"{role}: factory {spec.factory!r} fails: {reason}")
    return lines[-1]


def loaded_sha256(spec: ModelSpec, role: Role) -> str:
    """The sha256 of a loaded network's state.

    Args:
        spec: of the run file.
        role: clip or sam.

    Returns:
        Hexadecimal digits.
    """
    return state_sha256(load_sam(spec) if role == "sam" else load_clip(spec).model)


def _look_into(spec: ModelSpec, role: Role) -> dict[str, str | None]:
    """Whether a weight file is of the network that the run file names, without its values."""
    import torch

    if role == "sam":
        path = weights_file(spec, role)
        with torch.device("cpu" if spec.model == MOBILE_SAM else "meta"):
            sam = _new_sam(spec)
        demand_fit(sam, read_checkpoint(path, False).tensors, _does_not_fit(spec, role), _OPTIONAL[role])
        return {"sha256": file_sha256(path)}
    with torch.device("meta"):
        model = _new_clip(spec, quickgelu=False)
    _frozen(spec, model, "", "")  # before gigabytes are fetched for a network that is of no use
    path = weights_file(spec, role)
    checkpoint = read_checkpoint(path, False)
    demand_fit(model, _named_as(model, checkpoint), _does_not_fit(spec, role), _OPTIONAL[role])
    about: dict[str, str | None] = {"sha256": file_sha256(path)}
    if _has_quickgelu(spec, path, checkpoint) and not _config(spec)["quick_gelu"]:
        about["model"] = f"{spec.model}{QUICKGELU}"
        about["note"] = f"{spec.weights} was trained with QuickGELU: used as {about['model']}, not as {spec.model}"
    return about


def _demand_known(spec: ModelSpec, role: Role) -> None:
    models = _known_models(role)
    if spec.model not in models:
        near = difflib.get_close_matches(str(spec.model), models, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ModelError(f"there is no model {spec.model!r}{hint}; or give a factory")


def _known_models(role: Role) -> list[str]:
    if role == "sam":
        from segment_anything import sam_model_registry

        return [*(name for name in sam_model_registry if name != "default"), MOBILE_SAM]
    import open_clip

    return open_clip.list_models()


def _config(spec: ModelSpec) -> dict[str, Any]:
    """What open_clip's table says of an architecture, with its activation.

    Raises:
        ModelError: there is no such architecture, or one of its towers is none that FrozenClip takes.
    """
    import open_clip

    _demand_known(spec, "clip")
    config: Any = open_clip.get_model_config(spec.model)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        raise ModelError(f"{spec.model} has the image tower {vision['timm_model_name']} of timm; {_SUPPORTED}")
    if "multimodal_cfg" in config:
        raise ModelError(f"{spec.model} is a CoCa, whose image tower pools by attention; {_SUPPORTED}")
    if "hf_model_name" in text:
        raise ModelError(f"{spec.model} has the text tower {text['hf_model_name']} of transformers; {_SUPPORTED}")
    if "hf_tokenizer_name" in text:
        raise ModelError(f"{spec.model} reads the tokens of {text['hf_tokenizer_name']}, not CLIP's own; {_SUPPORTED}")
    return {"quick_gelu": False, "custom_text": False, **config}


def _new_clip(spec: ModelSpec, quickgelu: bool) -> Network:
    """An architecture of open_clip, without its weights, on torch's default device."""
    from open_clip.model import CLIP, CustomTextCLIP

    config = _config(spec)
    is_custom = config.pop("custom_text")
    config["quick_gelu"] |= quickgelu
    model = (CustomTextCLIP if is_custom else CLIP)(**config)
    tag = tag_settings(spec)
    visual: Any = model.visual
    visual.image_mean, visual.image_std = tag.get("mean"), tag.get("std")  # None: OpenAI's
    return model


def _named_as(model: Network, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensors of a file by the names of a CLIP whose text tower may be a module of its own."""
    from open_clip.model import convert_to_custom_text_state_dict

    if hasattr(model, "text") and "positional_embedding" in checkpoint.tensors:
        return convert_to_custom_text_state_dict(checkpoint.tensors)
    return checkpoint.tensors


def _has_quickgelu(spec: ModelSpec, path: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file can be told to be trained with QuickGELU: by its tag, its sum, or as only OpenAI writes them."""
    return bool(tag_settings(spec).get("quick_gelu")) or checkpoint.is_openai or is_of_openai(file_sha256(path))


def _new_sam(spec: ModelSpec) -> Network:
    """A SAM without its weights."""
    from segment_anything import sam_model_registry

    _demand_known(spec, "sam")
    return _new_mobile_sam() if spec.model == MOBILE_SAM else sam_model_registry[str(spec.model)]()


def _new_mobile_sam() -> Network:
    from segment_anything import sam_model_registry

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names networks anew that timm has too
            from mobile_sam.modeling import TinyViT
    except ImportError:
        raise ModelError(
            f"model {MOBILE_SAM!r} (MobileSAM) needs the package `mobile_sam` (`pip install mobilesam-mirror==1.0.0`)"
        ) from None
    sam: Any = sam_model_registry["vit_b"]()  # all but the encoder is the same
    sam.image_encoder = TinyViT(
        img_size=1024, in_chans=3, num_classes=1000, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7], mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.0,
        use_checkpoint=False, mbconv_expand_ratio=4.0, local_conv_size=3, layer_lr_decay=0.8,
    )  # fmt: skip
    return sam


def _does_not_fit(spec: ModelSpec, role: Role) -> str:
    return f"{role}.weights {spec.weights or spec.model} do not fit {role}.model {spec.model!r}"


def _frozen(spec: ModelSpec, model: Network, identity: str, name: str) -> FrozenClip:
    from open_clip.model import CLIP, CustomTextCLIP

    from fmwsss.core.clip.frozen_clip import FrozenClip

    if not isinstance(model, CLIP | CustomTextCLIP):
        raise ModelError(f"clip: {spec.factory or spec.model} is a {type(model).__name__}, not an open_clip CLIP")
    try:
        return FrozenClip(model, identity, name)
    except ValueError as error:
        raise ModelError(f"{spec.factory or spec.model}: {error}; {_SUPPORTED}") from None


def _demand_same_state(spec: ModelSpec, found: str) -> None:
    """Whether a factory gives what it gave the driver: another machine may have another file at the same place."""
    if spec.factory and spec.sha256 and found != spec.sha256:
        raise ModelError(
            f"factory {spec.factory!r} gives weights with sha256 {found} here and {spec.sha256} where the run was "
            "started: another or a damaged file"
        )
