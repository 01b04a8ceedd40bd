"""One step of prompt learning: ours against the authors' way, same weights, same batch, same process.

    python -m benchmarks.prompt_step [--batches 1 4 8] [--device cuda] [--precision bfloat16] [--json FILE]

The authors' way (method M2.1 a; HAL-42/FMA-WSSS, src/libs/coop): the text tower over all 77 positions; attention maps
kept from every block; the gradient of every positive's score with respect to the activation of the whole batch, all of
them in one batched product with a graph of its own; then `backward()` through them all, to the contexts and to the
activation, which is a leaf of their graph. "One by one" is a kinder double backward: the gradients in a loop, fused
attention in the frozen blocks, and the second backward pass only towards the contexts. "VJP and JVP" (M2.1 c) is ours
with torch's reverse mode through the last block on the way forth and its forward mode on the way back, in place of what
`core.clip.last_block` writes out. Ours: with the image tower in the loop, from the cached input of its last block,
and from the cached product F J, whose preparation is timed too; once more with torch's own linear layers, not oneDNN's.
Each side runs in a process of its own for its peak memory, and all in one process for times and differences.

`matrix_share`: floating-point operations of our step a second, as a share of what one large product of `torch.mm`
reaches on the same device in the same precision. On a CPU oneDNN's products are faster than that one.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.table import show, write_json
from fmwsss.core.class_maps.softmax_gradcam import softmax_gradcam
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.clip.last_block import MapProduct, map_product
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.prompts.losses import multi_label_contrastive
from fmwsss.core.prompts.text_graph import text_embedder
from fmwsss.core.vocabularies import VOC12

POSITIVES_PER_IMAGE = 1.5  # VOC: 1.46
CAM_WEIGHT = 1.0

Step = Callable[[], tuple[Tensor, Tensor]]
Cache = Literal["none", "input", "product"]


@dataclass(frozen=True)
class MapsByAutograd:
    """F J u by one product with the Jacobian, backwards, and its gradient by another, forwards."""

    embed: Callable[[Tensor, Tensor], Tensor]  # activation of each row, and the row's image, to its embedding
    activation: Tensor
    embedding: Tensor

    def cam(self, cotangent: Tensor, image: Tensor) -> Tensor:
        """As `LastBlock.cam`."""

        def embed(rows: Tensor) -> Tensor:
            return self.embed(rows, image)

        return _MapByAutograd.apply(cotangent, self.activation[image], embed)  # type: ignore[return-value]


class _MapByAutograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, activation: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.activation, ctx.embed = activation, embed
        gradient = torch.func.vjp(embed, activation)[1](cotangent)[0]
        return torch.einsum("rnk,rk->rn", activation[:, 1:], gradient[:, 1:].mean(1))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        patches = ctx.activation[:, 1:]
        of_mean = torch.einsum("rnk,rn->rk", patches, grad_outputs[0]) / patches.shape[1]
        tangent = torch.zeros_like(ctx.activation)
        tangent[:, 1:] = of_mean[:, None]
        torch.backends.mha.set_fastpath_enabled(False)  # it has no forward mode
        try:
            return torch.func.jvp(ctx.embed, (ctx.activation,), (tangent,))[1], None, None
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


class Problem:
    """ViT-B/16 with random weights, VOC's 45 prompts, a batch of noise; a loss on logits and maps together."""

    def __init__(self, batch: int, device: str, precision: str) -> None:
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        self.model: Any = open_clip.create_model("ViT-B-16", pretrained=None).eval().to(device)
        self.clip = FrozenClip(self.model.requires_grad_(False), identity="random")
        self.learner = PromptLearner(
            self.clip, VOC12, context="unified", name_position="end", backgrounds="named", init_std=0.02
        )
        self.pixels = torch.randn(batch, 3, 224, 224).to(device)
        self.present = torch.zeros(batch, len(VOC12.classes), dtype=torch.bool)
        for positive in range(round(POSITIVES_PER_IMAGE * batch)):
            self.present[positive % batch, (7 * positive) % 20] = True
        self.target = torch.rand(int(self.present.sum()), 196).to(device)
        self.present = self.present.to(device)
        with self.autocast():
            self.tokens = self.clip.encode_image(self.pixels).last_block_input
        self.product: MapProduct | None = None

    def autocast(self) -> torch.autocast:
        """Both towers in the precision asked for."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")

    def loss(self, logits: Tensor, maps: Tensor) -> Tensor:
        """Contrastive, and the distance of the maps from a fixed target; maps scaled up to the size of the other."""
        return multi_label_contrastive(logits, self.present) + CAM_WEIGHT * (1e4 * maps - self.target).abs().mean()

    def prepare_product(self, num_images: int) -> float:
        """Fills the cache of F J; returns seconds for an image, measured on some. The rest gets noise."""
        block = self.clip.last_block(self.tokens[:num_images])
        started_s = self.now_s()
        found = map_product(block)
        seconds_per_image = (self.now_s() - started_s) / num_images
        whole = self.clip.last_block(self.tokens)
        more = torch.randn(len(self.tokens) - num_images, *found.product.shape[1:]).to(found.product)
        more = more * found.product.std()
        self.product = MapProduct(whole.embedding, torch.cat([found.product, more]))
        return seconds_per_image

    def now_s(self) -> float:
        """Seconds, with all work of the device behind them."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def ours(self, cache: Cache, is_replayed: bool = False) -> tuple[Tensor, Tensor]:
        """A step by `fmwsss_core`: loss and gradient of the contexts; as in a training if the tower is replayed."""
        if cache == "product":
            assert self.product is not None
            return self._step_with(self.product, is_replayed)
        tokens = self.clip.encode_image(self.pixels).last_block_input if cache == "none" else self.tokens
        return self._step_with(self.clip.last_block(tokens), is_replayed)

    @cached_property
    def replay(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """The text tower as a training has it."""
        return text_embedder(self.learner, self.precision == "bfloat16")

    def by_torchs_linear(self) -> tuple[Tensor, Tensor]:
        """Ours, with the linear layers of the frozen towers as torch itself computes them (`frozen_linear`)."""
        with torch.backends.mkldnn.flags(enabled=False):
            return self.ours("none")

    def vjp_and_jvp(self) -> tuple[Tensor, Tensor]:
        """The same with derivatives of the last block by torch."""
        with torch.no_grad():
            x = self.clip.encode_image(self.pixels).last_block_input
            activation = self.model.visual.transformer.resblocks[-1].ln_1(x)
            embedding = self._embed(activation, x)

        def embed(rows: Tensor, image: Tensor) -> Tensor:
            return self._embed(rows, x[image])

        return self._step_with(MapsByAutograd(embed, activation, embedding))

    def _step_with(self, block: Any, is_replayed: bool = False) -> tuple[Tensor, Tensor]:
        foreground, background = self.replay() if is_replayed else self.learner()
        maps = softmax_gradcam(block, self.clip.logit_scale, foreground, background, self.present)
        loss = self.loss(maps.logits, maps.cam)
        return loss.detach(), torch.autograd.grad(loss, self.learner.context)[0]

    def authors(self) -> tuple[Tensor, Tensor]:
        """A step as the authors' program takes it."""
        self.learner.context.grad = None
        activation, logits, scores = self._authors_forward(self._image_tower_with_attention())
        image = self.present.nonzero()[:, 0]
        gradients = torch.autograd.grad(
            scores, activation, torch.eye(len(scores)).to(scores), create_graph=True, is_grads_batched=True
        )[0]
        mean = gradients[torch.arange(len(scores)).to(image), image, 1:].mean(1)
        loss = self.loss(logits, torch.einsum("pnk,pk->pn", activation.detach()[image, 1:], mean))
        loss.backward()
        assert self.learner.context.grad is not None
        return loss.detach(), self.learner.context.grad

    def one_by_one(self) -> tuple[Tensor, Tensor]:
        """The same with nothing computed that is not needed for a double backward."""
        activation, logits, scores = self._authors_forward(self.clip.encode_image(self.pixels).last_block_input)
        maps = []
        for i, score in zip(self.present.nonzero()[:, 0].tolist(), scores, strict=True):
            gradient = torch.autograd.grad(score, activation, create_graph=True)[0]
            maps.append(activation.detach()[i, 1:] @ gradient[i, 1:].mean(0))
        loss = self.loss(logits, torch.stack(maps))
        return loss.detach(), torch.autograd.grad(loss, self.learner.context)[0]

    def _authors_forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the input of the last block: its activation, the logits, the score of every positive."""
        learner = self.learner
        texts = self._whole_text_tower(learner.token_embeddings()[learner.tree.path], learner.tree.end)
        foreground, background = texts[learner._foreground_rows], texts[learner._background_rows]
        block = self.model.visual.transformer.resblocks[-1]
        activation = block.ln_1(x).detach().requires_grad_()
        image = self._embed(activation, x)
        scale = self.model.logit_scale.exp()
        logits, background_logits = scale * image @ foreground.T, scale * image @ background.T
        absent = torch.cat([~self.present, torch.zeros_like(background_logits, dtype=torch.bool)], 1)
        scores = torch.cat([logits, background_logits], 1).masked_fill(absent, -torch.inf).softmax(1)
        return activation, logits, scores[:, : logits.shape[1]][self.present]

    def _embed(self, activation: Tensor, x: Tensor) -> Tensor:
        """What the last block and all after it make of its activation and of its input."""
        visual = self.model.visual
        block = visual.transformer.resblocks[-1]
        x = x + block.attn(activation, activation, activation, need_weights=True)[0]
        x = x + block.mlp(block.ln_2(x))
        return functional.normalize(visual.ln_post(x)[:, 1:].mean(1) @ visual.proj, dim=-1)

    def _image_tower_with_attention(self) -> Tensor:
        visual = self.model.visual
        x, attention = visual._embeds(self.pixels), []
        for block in visual.transformer.resblocks[:-1]:
            y = block.ln_1(x)
            y, weights = block.attn(y, y, y, need_weights=True)
            attention.append(weights)
            x = x + y
            x = x + block.mlp(block.ln_2(x))
        return x

    def _whole_text_tower(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        length = self.model.context_length
        x = functional.pad(embeddings, (0, 0, 0, length - embeddings.shape[1]))
        x = self.model.transformer(x + self.model.positional_embedding[:length], attn_mask=self.model.attn_mask)
        x = self.model.ln_final(x)[torch.arange(len(x)), ends]
        return functional.normalize(x @ self.model.text_projection, dim=-1)


def seconds(problem: Problem, step: Step, repeats: int) -> float:
    """The best of several runs."""
    times = []
    for _ in range(repeats):
        started_s = problem.now_s()
        with problem.autocast():
            step()
        times.append(problem.now_s() - started_s)
    return min(times)


def operations(problem: Problem) -> int:
    """Floating-point operations of the matrix products and attentions of our step."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _of_linear})
    with counter, problem.autocast():
        problem.ours("none")
    return counter.get_total_flops()


def _of_linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def most_operations_per_s(problem: Problem) -> float:
    """What one large matrix product reaches on the same device in the same precision."""
    size = 8192 if problem.device == "cuda" else 2048
    dtype = torch.bfloat16 if problem.precision == "bfloat16" else torch.float32
    one, other = (torch.randn(size, size, device=problem.device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(4):
        started_s = problem.now_s()
        torch.mm(one, other)
        times.append(problem.now_s() - started_s)
    return 2 * size**3 / min(times)


def _high_water_bytes() -> int:
    # Not `ru_maxrss`: a new process starts with its parent's.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _peak(side: str, batch: int, device: str, precision: str, num_threads: int, answers: Any) -> None:
    torch.set_num_threads(num_threads)
    problem = Problem(batch, device, precision)
    peak_bytes_now = torch.cuda.max_memory_allocated if device == "cuda" else _high_water_bytes
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_bytes_now()
    with problem.autocast():
        step = problem.authors if side == "authors" else lambda: problem.ours("none")
        step()
    answers.put(peak_bytes_now() - before)


def peak_bytes(side: str, batch: int, device: str, precision: str) -> int:
    """How much one step adds to the peak memory, of the GPU or of a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    arguments = (side, batch, device, precision, torch.get_num_threads(), answers)
    process = context.Process(target=_peak, args=arguments)
    process.start()
    answer = answers.get()
    process.join()
    return answer


def measure(batch: int, repeats: int, device: str, precision: str) -> dict[str, Any]:
    """One row of the table."""
    problem = Problem(batch, device, precision)
    with problem.autocast():
        theirs, ours, by_torch = problem.authors(), problem.ours("none"), problem.vjp_and_jvp()
        prepare_s = problem.prepare_product(1)
    times = {
        "authors": seconds(problem, problem.authors, repeats),
        "one_by_one": seconds(problem, problem.one_by_one, repeats),
        "vjp_jvp": seconds(problem, problem.vjp_and_jvp, repeats + 1),
        "none": seconds(problem, lambda: problem.ours("none"), repeats + 1),
        "by_torchs_linear": seconds(problem, problem.by_torchs_linear, repeats + 1),
        "input": seconds(problem, lambda: problem.ours("input"), repeats + 1),
        "product": seconds(problem, lambda: problem.ours("product"), repeats + 1),
    }
    share = operations(problem) / times["none"] / most_operations_per_s(problem)
    memory = {side: peak_bytes(side, batch, device, precision) for side in ("authors", "ours")}
    return {
        "batch": batch,
        "positives": int(problem.present.sum()),
        "authors_s": times["authors"],
        "one_by_one_s": times["one_by_one"],
        "vjp_jvp_s": times["vjp_jvp"],
        "ours_s": times["none"],
        "by_torchs_linear_s": times["by_torchs_linear"],
        "cached_input_s": times["input"],
        "cached_s": times["product"],
        "prepare_s": prepare_s,
        "speedup": times["authors"] / times["none"],
        "speedup_cached_input": times["authors"] / times["input"],
        "speedup_cached": times["authors"] / times["product"],
        "authors_gib": memory["authors"] / 2**30,
        "ours_gib": memory["ours"] / 2**30,
        "memory_ratio": memory["ours"] / memory["authors"],
        "matrix_share": share,
        "loss_error": float((ours[0] - theirs[0]).abs() / theirs[0].abs()),
        "gradient_error": float((ours[1] - theirs[1]).norm() / theirs[1].norm()),
        "vjp_jvp_gradient_error": float((by_torch[1] - theirs[1]).norm() / theirs[1].norm()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    rows = [measure(batch, arguments.repeats, arguments.device, arguments.precision) for batch in arguments.batches]
    show(rows, f"prompt step, ViT-B/16 at 224, 45 prompts, {arguments.precision}", arguments.device)
    write_json(arguments.json, {"rows": rows})
