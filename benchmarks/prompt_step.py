"""One step of prompt learning: ours against the authors' way, same weights, same batch, same process.

    python -m benchmarks.prompt_step [--batches 1 4 8] [--json FILE]

The authors' way (method M2.1 a; HAL-42/FMA-WSSS, src/libs/coop): the text tower over all 77 positions; attention maps
kept from every block; the gradient of every positive's score with respect to the activation of the whole batch, all of
them in one batched product with a graph of its own; then `backward()` through them all, to the contexts and to the
activation, which is a leaf of their graph. "One by one" is a kinder double backward: the gradients in a loop, fused
attention in the frozen blocks, and the second backward pass only towards the contexts. Ours: with the image tower in
the loop, from the cached input of its last block, and from the cached product F J, whose preparation is timed too.
Each side runs in a process of its own for its peak memory, and all in one process for times and differences.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.table import show, write_json
from fmwsss_core.cam import softmax_gradcam
from fmwsss_core.clip import FrozenClip
from fmwsss_core.last_block import LastBlock, MapProduct, map_product
from fmwsss_core.losses import multi_label_contrastive
from fmwsss_core.prompts import PromptLearner
from fmwsss_core.vocabulary import VOC12

POSITIVES_PER_IMAGE = 1.5  # VOC: 1.46
CAM_WEIGHT = 1.0

Step = Callable[[], tuple[Tensor, Tensor]]
Cache = Literal["none", "input", "product"]


class Problem:
    """ViT-B/16 with random weights, VOC's 45 prompts, a batch of noise; a loss on logits and maps together."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        self.model: Any = open_clip.create_model("ViT-B-16", pretrained=None).eval()
        self.clip = FrozenClip(self.model.requires_grad_(False), identity="random")
        self.learner = PromptLearner(
            self.clip, VOC12, context="unified", name_position="end", backgrounds="named", init_std=0.02
        )
        self.pixels = torch.randn(batch, 3, 224, 224)
        self.present = torch.zeros(batch, len(VOC12.classes), dtype=torch.bool)
        for positive in range(round(POSITIVES_PER_IMAGE * batch)):
            self.present[positive % batch, (7 * positive) % 20] = True
        self.target = torch.rand(int(self.present.sum()), 196)
        self.tokens = self.clip.encode_image(self.pixels).last_block_input
        self.product: MapProduct | None = None

    def loss(self, logits: Tensor, maps: Tensor) -> Tensor:
        """Contrastive, and the distance of the maps from a fixed target; maps scaled up to the size of the other."""
        return multi_label_contrastive(logits, self.present) + CAM_WEIGHT * (1e4 * maps - self.target).abs().mean()

    def prepare_product(self, num_images: int) -> float:
        """Fills the cache of F J; returns seconds for an image, measured on some. The rest gets noise."""
        block = self.clip.last_block(self.tokens[:num_images])
        started_s = time.perf_counter()
        found = map_product(block)
        seconds_per_image = (time.perf_counter() - started_s) / num_images
        whole = self.clip.last_block(self.tokens)
        more = torch.randn(len(self.tokens) - num_images, *found.product.shape[1:]) * found.product.std()
        self.product = MapProduct(whole.embedding, torch.cat([found.product, more]))
        return seconds_per_image

    def ours(self, cache: Cache) -> tuple[Tensor, Tensor]:
        """A step by `fmwsss_core`: loss and gradient of the contexts."""
        block: LastBlock | MapProduct
        if cache == "product":
            assert self.product is not None
            block = self.product
        else:
            tokens = self.tokens
            if cache == "none":
                tokens = self.clip.encode_image(self.pixels).last_block_input
            block = self.clip.last_block(tokens)
        foreground, background = self.learner()
        maps = softmax_gradcam(block, self.clip.logit_scale, foreground, background, self.present)
        loss = self.loss(maps.logits, maps.cam)
        return loss.detach(), torch.autograd.grad(loss, self.learner.context)[0]

    def authors(self) -> tuple[Tensor, Tensor]:
        """A step as the authors' program takes it."""
        self.learner.context.grad = None
        activation, logits, scores = self._authors_forward(self._image_tower_with_attention())
        image = self.present.nonzero()[:, 0]
        gradients = torch.autograd.grad(
            scores, activation, torch.eye(len(scores)), create_graph=True, is_grads_batched=True
        )[0]
        mean = gradients[torch.arange(len(scores)), image, 1:].mean(1)
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
        x = x + block.attn(activation, activation, activation, need_weights=True)[0]
        x = x + block.mlp(block.ln_2(x))
        image = functional.normalize(self.model.visual.ln_post(x)[:, 1:].mean(1) @ self.model.visual.proj, dim=-1)
        scale = self.model.logit_scale.exp()
        logits, background_logits = scale * image @ foreground.T, scale * image @ background.T
        absent = torch.cat([~self.present, torch.zeros_like(background_logits, dtype=torch.bool)], 1)
        scores = torch.cat([logits, background_logits], 1).masked_fill(absent, -torch.inf).softmax(1)
        return activation, logits, scores[:, : logits.shape[1]][self.present]

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


def seconds(step: Step, repeats: int) -> float:
    """The best of several runs."""
    times = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        step()
        times.append(time.perf_counter() - started_s)
    return min(times)


def _high_water_bytes() -> int:
    # Not `ru_maxrss`: a new process starts with its parent's.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _peak(side: str, batch: int, num_threads: int, answers: Any) -> None:
    torch.set_num_threads(num_threads)
    problem = Problem(batch)
    before = _high_water_bytes()
    problem.authors() if side == "authors" else problem.ours("none")
    answers.put(_high_water_bytes() - before)


def peak_bytes(side: str, batch: int) -> int:
    """How much one step adds to the peak memory of a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_peak, args=(side, batch, torch.get_num_threads(), answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def measure(batch: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    problem = Problem(batch)
    theirs, ours = problem.authors(), problem.ours("none")
    prepare_s = problem.prepare_product(1)
    times = {
        "authors": seconds(problem.authors, repeats),
        "one_by_one": seconds(problem.one_by_one, repeats),
        "none": seconds(lambda: problem.ours("none"), repeats + 1),
        "input": seconds(lambda: problem.ours("input"), repeats + 1),
        "product": seconds(lambda: problem.ours("product"), repeats + 1),
    }
    memory = {side: peak_bytes(side, batch) for side in ("authors", "ours")}
    return {
        "batch": batch,
        "positives": int(problem.present.sum()),
        "authors_s": times["authors"],
        "one_by_one_s": times["one_by_one"],
        "ours_s": times["none"],
        "cached_input_s": times["input"],
        "cached_s": times["product"],
        "prepare_s": prepare_s,
        "speedup": times["authors"] / times["none"],
        "speedup_cached_input": times["authors"] / times["input"],
        "speedup_cached": times["authors"] / times["product"],
        "authors_gib": memory["authors"] / 2**30,
        "ours_gib": memory["ours"] / 2**30,
        "memory_ratio": memory["ours"] / memory["authors"],
        "loss_error": float((ours[0] - theirs[0]).abs() / theirs[0].abs()),
        "gradient_error": float((ours[1] - theirs[1]).norm() / theirs[1].norm()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    rows = [measure(batch, arguments.repeats) for batch in arguments.batches]
    show(rows, "prompt step, ViT-B/16 at 224, 45 prompts")
    write_json(arguments.json, {"rows": rows})
