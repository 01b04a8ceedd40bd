"""One step of prompt learning: ours against the authors' way, same weights, same batch, same process.

    python -m benchmarks.prompt_step [--batches 1 4 8] [--json FILE]

The authors' way (method M2.1 a): the text tower over all 77 positions; for every positive the gradient of its score
with respect to the activation of the whole batch, with a graph of its own; then a second backward through them all.
Each side runs in a process of its own for its peak memory, and both in one process for their times and differences.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.table import show, write_json
from fmwsss_core.cam import softmax_gradcam
from fmwsss_core.clip import FrozenClip
from fmwsss_core.losses import multi_label_contrastive
from fmwsss_core.prompts import PromptLearner
from fmwsss_core.vocabulary import VOC12

POSITIVES_PER_IMAGE = 1.5  # VOC: 1.46
CAM_WEIGHT = 1.0

Step = Callable[[], tuple[Tensor, Tensor]]


class Problem:
    """ViT-B/16 with random weights, VOC's 45 prompts, a batch of noise; a loss on logits and maps together."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        self.model: Any = open_clip.create_model("ViT-B-16", pretrained=None).eval()
        self.clip = FrozenClip(self.model, identity="random")
        self.learner = PromptLearner(
            self.clip, VOC12, context="unified", name_position="end", backgrounds="named", init_std=0.02
        )
        self.pixels = torch.randn(batch, 3, 224, 224)
        self.present = torch.zeros(batch, len(VOC12.classes), dtype=torch.bool)
        for positive in range(round(POSITIVES_PER_IMAGE * batch)):
            self.present[positive % batch, (7 * positive) % 20] = True
        self.target = torch.rand(int(self.present.sum()), 196)
        self.cached = self.clip.encode_image(self.pixels, with_attention=False).last_block_input

    def loss(self, logits: Tensor, maps: Tensor) -> Tensor:
        """Contrastive, and the distance of the maps from a fixed target; maps scaled up to the size of the other."""
        return multi_label_contrastive(logits, self.present) + CAM_WEIGHT * (1e4 * maps - self.target).abs().mean()

    def ours(self, cached: bool) -> tuple[Tensor, Tensor]:
        """A step by `fmwsss_core`: loss and gradient of the contexts."""
        features = self.cached if cached else self.clip.encode_image(self.pixels, with_attention=False).last_block_input
        foreground, background = self.learner()
        maps = softmax_gradcam(self.clip, features, foreground, background, self.present)
        loss = self.loss(maps.logits, maps.cam)
        return loss.detach(), torch.autograd.grad(loss, self.learner.context)[0]

    def authors(self) -> tuple[Tensor, Tensor]:
        """A step as the authors' program takes it."""
        learner = self.learner
        texts = self._whole_text_tower(learner.token_embeddings()[learner.tree.path], learner.tree.end)
        foreground, background = texts[learner._foreground_rows], texts[learner._background_rows]
        x = self.clip.encode_image(self.pixels, with_attention=False).last_block_input
        block = self.model.visual.transformer.resblocks[-1]
        activation = block.ln_1(x).detach().requires_grad_()
        x = x + block.attn(activation, activation, activation, need_weights=True)[0]
        x = x + block.mlp(block.ln_2(x))
        image = functional.normalize(self.model.visual.ln_post(x)[:, 1:].mean(1) @ self.model.visual.proj, dim=-1)
        scale = self.model.logit_scale.exp()
        logits, background_logits = scale * image @ foreground.T, scale * image @ background.T
        maps = []
        for i, c in self.present.nonzero().tolist():
            candidates = torch.cat([logits[i][self.present[i]], background_logits[i]])
            score = (logits[i, c] - candidates.logsumexp(0)).exp()
            gradient = torch.autograd.grad(score, activation, create_graph=True)[0]
            maps.append(activation.detach()[i, 1:] @ gradient[i, 1:].mean(0))
        loss = self.loss(logits, torch.stack(maps))
        return loss.detach(), torch.autograd.grad(loss, self.learner.context)[0]

    def _whole_text_tower(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        length = self.model.context_length
        x = functional.pad(embeddings, (0, 0, 0, length - embeddings.shape[1]))
        x = self.model.transformer(x + self.model.positional_embedding[:length], attn_mask=self.model.attn_mask)
        x = self.model.ln_final(x)[torch.arange(len(x)), ends]
        return functional.normalize(x @ self.model.text_projection, dim=-1)


def seconds(step: Step, repeats: int) -> float:
    """The best of several runs, after one that warms up."""
    step()
    times = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        step()
        times.append(time.perf_counter() - started_s)
    return min(times)


def _peak(side: str, batch: int, answers: Any) -> None:
    problem = Problem(batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem.authors() if side == "authors" else problem.ours(cached=False)
    answers.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def peak_bytes(side: str, batch: int) -> int:
    """How much one step adds to the peak memory of a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_peak, args=(side, batch, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def measure(batch: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    problem = Problem(batch)
    theirs, ours = problem.authors(), problem.ours(cached=False)
    times = {
        "authors": seconds(problem.authors, repeats),
        "ours": seconds(lambda: problem.ours(cached=False), repeats),
        "cached": seconds(lambda: problem.ours(cached=True), repeats),
    }
    memory = {side: peak_bytes(side, batch) for side in ("authors", "ours")}
    return {
        "batch": batch,
        "positives": int(problem.present.sum()),
        "authors_s": times["authors"],
        "ours_s": times["ours"],
        "cached_s": times["cached"],
        "speedup": times["authors"] / times["ours"],
        "speedup_cached": times["authors"] / times["cached"],
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
