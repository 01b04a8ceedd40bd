"""What one step of learning or training takes on the machine at hand; for `fmwsss plan`, in a Ray worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import torch

from fmwsss.cluster.models.device import pick_device, use_threads
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.segmenters import SegmenterSpec, new_segmenter
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import FOREGROUND_FILE, PROMPTS_FILE
from fmwsss.core.adaptive_batch import FittingBatch
from fmwsss.core.seeds.foreground import fit_folds, fit_foreground
from fmwsss.core.segmenter.optimizer import backward
from fmwsss.core.tags.threshold import dataset_threshold
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.prompts import LearnSection
from fmwsss.jobs.config.segmenter import SegmenterSection
from fmwsss.jobs.prompts.batches import Batch
from fmwsss.jobs.prompts.encode import shapes_of
from fmwsss.jobs.prompts.train_step import batch_loss, make_embedder, make_learner
from fmwsss.jobs.tags.tag import THRESHOLD_FILE

NUM_FEATURES = 512  # of a superpixel


def learning_step_s(
    spec: ModelSpec, vocabulary: Vocabulary, section: LearnSection, batch_size: int, num_threads: int
) -> float:
    """Seconds of one step of prompt learning, forward and backward, over `batch_size` views of noise.

    Args:
        spec: of the run's CLIP.
        vocabulary: of the run.
        section: of the run file.
        batch_size: views.
        num_threads: of torch.

    Returns:
        Seconds.
    """
    use_threads(num_threads)
    clip = load_clip(spec)
    learner = make_learner(clip, vocabulary, section, random_seed=0)
    images, labels = _noise(batch_size, section.augment.crop_px)
    features = tuple(torch.randn(batch_size, *shape) for shape in shapes_of(clip, section)) if section.cache else ()
    present = torch.zeros(batch_size, len(vocabulary.classes), dtype=torch.bool)
    present[:, 0] = True
    batch = Batch(None if section.cache else images, features, present, labels if section.cam_weight else None)

    embed = make_embedder(clip, learner, section)

    def step() -> None:
        loss = batch_loss(clip, embed, batch, section, FittingBatch(section.batch_size))
        counts = (loss.num_classified, loss.num_mapped)
        loss.weighted(section.classification_weight, section.cam_weight, *counts)[0].backward()

    return _second_time_s(step)


def write_initial_prompts(spec: ModelSpec, vocabulary: Vocabulary, section: LearnSection, folder: Folder) -> None:
    """Prompts as they are before the first step, in place of learned ones.

    Args:
        spec: of the run's CLIP.
        vocabulary: of the run.
        section: of the run file.
        folder: of the stage that would learn them.
    """
    folder.write(PROMPTS_FILE, make_learner(load_clip(spec), vocabulary, section, random_seed=0).to_bytes())


def foreground_fit_s(num_thousands: int, num_threads: int) -> float:
    """Seconds of fitting one model of foreground to superpixels of noise.

    Args:
        num_thousands: of superpixels, each with NUM_FEATURES features.
        num_threads: of torch.

    Returns:
        Seconds.
    """
    use_threads(num_threads)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(1000 * num_thousands, NUM_FEATURES)).astype(np.float32)
    margins = generator.normal(size=len(features))
    return _second_time_s(lambda: fit_foreground(features, margins))  # type: ignore[arg-type]


def write_untrained_foreground(folder: Folder) -> None:
    """Models that leave everything to the maps, in place of learned ones."""
    nothing = np.zeros((0, 1), np.float32)
    folder.write(FOREGROUND_FILE, fit_folds(nothing, np.zeros(0), np.zeros(0, np.int64)).to_bytes())


def tag_threshold_s(num_classes: int, num_images: int, num_threads: int) -> float:
    """Seconds of choosing a threshold by the scores of a hundred thousand images of noise.

    Args:
        num_classes: scores of an image.
        num_images: not asked: it takes no time beside the other stages.
        num_threads: not asked either.
    """
    del num_images, num_threads
    scores = np.random.default_rng(0).uniform(size=(100_000, num_classes)).astype(np.float32)
    return _second_time_s(lambda: dataset_threshold(scores))  # type: ignore[arg-type]


def write_any_threshold(num_classes: int, folder: Folder) -> None:
    """A threshold that leaves an image one class, in place of the one that is found on all.

    Args:
        num_classes: not asked; what a step and its stand-in are called with is the same.
        folder: of the stage.
    """
    del num_classes
    folder.write(THRESHOLD_FILE, json.dumps({"threshold": 1.0}).encode())


def training_step_s(spec: SegmenterSpec, section: SegmenterSection, batch_size: int, num_threads: int) -> float:
    """Seconds of one step of a segmenter, forward and backward, over `batch_size` crops of noise.

    Args:
        spec: of the segmenter.
        section: of the run file.
        batch_size: crops.
        num_threads: of torch.

    Returns:
        Seconds.
    """
    use_threads(num_threads)
    device = torch.device(pick_device())
    segmenter = new_segmenter(spec).to(device).train()
    images, labels = _noise(batch_size, section.crop_px)
    precision = section.precision or ("bfloat16" if device.type == "cuda" else "float32")

    def step() -> None:
        seeds, pieces = range(batch_size), section.micro_batches
        backward(segmenter, images.to(device), labels.to(device), None, seeds, pieces, precision, lambda x: x)

    return _second_time_s(step)


def _noise(batch_size: int, side_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and labels of two classes in halves."""
    images = torch.randint(0, 256, (batch_size, 3, side_px, side_px), dtype=torch.uint8)
    labels = torch.zeros(batch_size, side_px, side_px, dtype=torch.uint8)
    labels[:, side_px // 2 :] = 1
    return images, labels


def _second_time_s(step: Callable[[], None]) -> float:
    """The first time pays for what comes only once."""
    took_s = 0.0
    for _ in range(2):
        began_s = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took_s = time.perf_counter() - began_s
    return took_s
