"""One training step of a set of prompts: the learner and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fmwsss.cluster.models.device import uses_bfloat16
from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.clip.last_block import LastBlock, MapProduct
from fmwsss.core.prompts.learner import PromptLearner
from fmwsss.core.prompts.objective import PromptLoss, prompt_loss
from fmwsss.core.prompts.text_graph import Texts, text_embedder
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.prompts import LearnSection
from fmwsss.jobs.prompts.batches import Batch


def make_learner(clip: FrozenClip, vocabulary: Vocabulary, section: LearnSection, random_seed: int) -> PromptLearner:
    """The prompts that a section of the run file describes, before they have learned anything.

    Args:
        clip: of the run.
        vocabulary: of the run.
        section: of the run file.
        random_seed: of the contexts.

    Returns:
        A learner on the CLIP's device.
    """
    return PromptLearner(
        clip, vocabulary, context=section.context, name_position=section.name_position,
        num_context=section.num_context, init_std=section.init_std, backgrounds=section.backgrounds,
        num_backgrounds=section.num_backgrounds, seed=random_seed,
    ).to(clip.device)  # fmt: skip


def make_embedder(clip: FrozenClip, learner: PromptLearner, section: LearnSection) -> Callable[[], Texts]:
    """The text embeddings of a learner at every step, in the precision of the section (`text_embedder`).

    Args:
        clip: of the run.
        learner: that is trained.
        section: of the run file.

    Returns:
        See `text_embedder`.
    """
    return text_embedder(learner, uses_bfloat16(section.precision, clip.device.type))


def batch_loss(
    clip: FrozenClip, embed: Callable[[], Texts], batch: Batch, section: LearnSection, views: FittingBatch
) -> PromptLoss:
    """The losses of a batch, whose views come as pixels, as cached tokens, or as the cached product.

    As pixels, as many of them at a time go through the image tower as fit. `embed` is of `make_embedder`.

    Args:
        clip: of the run.
        embed: gives the text embeddings of this step.
        batch: this worker's share.
        section: of the run file.
        views: how many go through the image tower together.

    Returns:
        The two losses, and what they are means over.
    """
    side = -(-section.augment.crop_px // clip.patch_size)
    is_half = uses_bfloat16(section.precision, clip.device.type)
    block: LastBlock | MapProduct
    if batch.images is not None:
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=is_half):
            pixels = clip.preprocess(batch.images.to(clip.device, non_blocking=True))
            parts = views.run(lambda some: clip.encode_image(some).last_block_input, pixels)
            tokens = torch.cat([*parts])
        block = clip.last_block(tokens.float())
    else:
        arrays = [array.to(clip.device, non_blocking=True) for array in batch.features]
        block = clip.last_block(arrays[0]) if section.cache == "input" else MapProduct(arrays[0][:, 0], arrays[1])
    foreground, background = embed()
    return prompt_loss(
        block, (side, side), clip.logit_scale, foreground, background, batch.present,
        batch.labels.to(clip.device, non_blocking=True) if batch.labels is not None else None, batch.shown,
        classification_loss=section.classification_loss, cam_loss=section.cam_loss, cam_map=section.cam_map,
        mean_over=section.mean_over,
    )  # fmt: skip
