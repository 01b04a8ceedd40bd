"""A trained segmenter as one file that torch alone runs: no package of ours, no run folder.

A Mask2Former with a backbone of `transformers` needs it least: its folder is one of `save_pretrained`.
"""

from __future__ import annotations

import io
import json

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.fx import GraphModule

from fmwsss.cluster.models.segmenters import load_segmenter
from fmwsss.cluster.storage.ledger import Run
from fmwsss.core.errors import InputError
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.jobs.config.run import RunConfig
from fmwsss.jobs.segmenter.trained import segmenter_spec, trained_folder

CLASSES_FILE = "classes.json"  # inside of the exported file


class _Scores(nn.Module):
    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: UInt8[Tensor, "1 3 height width"]) -> Float[Tensor, "1 classes height width"]:
        return self.segmenter.scores(images)


def export(config: RunConfig, run: Run, height_px: int, width_px: int) -> str:
    """Writes the run's segmenter as a program of `torch.export` beside its weights; returns the URL of the file.

    The program takes an RGB image, uint8 of (1, 3, height_px, width_px), and returns the probability of each class at
    each pixel: at one scale, without refinement. It runs on a CPU; its classes are in the file, as JSON.

    Args:
        config: the run file.
        run: the run folder.
        height_px: of its images.
        width_px: of its images.

    Raises:
        ValueError: there is no trained segmenter, or it does not take images of this size.
    """
    folder, _ = trained_folder(config, run, "export")
    spec = segmenter_spec(config)
    segmenter = load_segmenter(folder, spec).cpu()
    divisor = segmenter.size_divisor
    if height_px % divisor or width_px % divisor:
        raise InputError(f"the sides of --size are multiples of {divisor} for this network, not {height_px}x{width_px}")
    images = torch.zeros(1, 3, height_px, width_px, dtype=torch.uint8)
    with torch.no_grad():  # all around: a switch in the middle of the network would become a part of the program
        whole = torch.export.export(_Scores(segmenter), (images,), strict=False)
        program = torch.export.export(_without_unused(whole.module()), (images,), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CLASSES_FILE: json.dumps(spec.class_names)})
    name = f"scores-{height_px}x{width_px}.pt2"
    folder.write(name, buffer.getvalue())
    return f"{folder.url}/{name}"


def _without_unused(program: GraphModule) -> GraphModule:
    """The same program without weights that nothing of it reads: CLIP's text tower, a head for training alone."""
    program.graph.eliminate_dead_code()
    used = {node.target for node in program.graph.nodes if node.op == "get_attr" and node.users}
    for name in [name for name, _ in (*program.named_parameters(), *program.named_buffers()) if name not in used]:
        owner, _, own_name = name.rpartition(".")
        delattr(program.get_submodule(owner), own_name)
    program.recompile()
    return program
