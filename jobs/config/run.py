"""The schema of a run file: what every key may be and what it is when it is left out. `run_file` reads one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from fmwsss.core.vocabularies import custom_vocabulary, vocabulary_named
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.base import Count, Percentage, Section
from fmwsss.jobs.config.datasets import FolderData, ImageLimits, ToyData, VocData
from fmwsss.jobs.config.models import ModelSection, ProposeSection, VocabularySection
from fmwsss.jobs.config.prompts import LearnStages
from fmwsss.jobs.config.seeds import SeedStages
from fmwsss.jobs.config.segmenter import PredictSection, SegmenterSection


class PreviewSection(Section):
    """The report a person looks at."""

    num_images: Count = 40


class ClusterSection(Section):
    """Where to run and how much of it to use; a null takes what is there."""

    address: str | None = None
    num_cpus: Count | None = None
    num_replicas: Count | None = None
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = None
    max_gpus: Count | None = None  # that an autoscaler may bring; left out, those that are there
    num_threads: Count = 2  # of each replica and training worker; not what a machine has, so that bytes do not change
    train_workers: Count | tuple[Count, Count] = 1  # or [least, most]: then as many as the cluster has room for
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0

    @model_validator(mode="after")
    def _least_first(self) -> ClusterSection:
        if isinstance(self.train_workers, tuple) and self.train_workers[0] > self.train_workers[1]:
            raise ValueError(f"train_workers is [least, most], got {list(self.train_workers)}")
        return self


class RunConfig(Section):
    """A whole run file."""

    run: str
    dataset: Annotated[ToyData | VocData | FolderData, Field(discriminator="kind")]
    vocabulary: str | VocabularySection
    clip: ModelSection
    sam: ModelSection
    shard_rows: Count = 32
    random_seed: Annotated[int, Field(ge=0)] = 0
    max_failures: Percentage = 1.0  # of the images of a stage, as a share or `1 %`; more end the run
    limits: ImageLimits = ImageLimits()
    propose: ProposeSection = ProposeSection()
    proposals: str | None = None  # a folder or URL of superpixels that runs share, by image, SAM and settings
    prompts: str | None = None  # a run whose prompts are taken; then none are learned, and `learn` says nothing
    learn: LearnStages
    seeds: SeedStages
    segmenter: SegmenterSection | None = None
    predict: PredictSection = PredictSection()
    preview: PreviewSection = PreviewSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _has_queries(self) -> RunConfig:
        own = self.segmenter
        if own and own.network == "deeplabv3plus" and not own.factory and self.predict.merge_queries != "sum":
            raise ValueError("`predict.merge_queries` is of a Mask2Former: `network: deeplabv3plus` has no queries")
        return self

    def resolve_vocabulary(self) -> Vocabulary:
        """The classes of this run."""
        if isinstance(self.vocabulary, str):
            return vocabulary_named(self.vocabulary)
        own = self.vocabulary
        return custom_vocabulary(own.classes, prompts=own.prompts, backgrounds=own.backgrounds)
