"""The schema of a run file: what every key may be and what it is when it is left out. `run_file` reads one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from fmwsss.core.vocabularies import custom_vocabulary, vocabulary_named
from fmwsss.core.vocabulary import Vocabulary
from fmwsss.jobs.config.base import Count, Percentage, Section
from fmwsss.jobs.config.budget import PricesSection
from fmwsss.jobs.config.class_maps import given_sources
from fmwsss.jobs.config.datasets import ImageLimits, LabelledData, UnlabelledData
from fmwsss.jobs.config.labels import LabelsSection
from fmwsss.jobs.config.models import ModelSection, ProposeSection, VocabularyChoice
from fmwsss.jobs.config.prompts import LearnStages
from fmwsss.jobs.config.seeds import SeedStages
from fmwsss.jobs.config.segmenter import PredictSection, SegmenterSection
from fmwsss.jobs.config.tracking import NotifySection, TrackingSection


class PreviewSection(Section):
    """The report that a person looks at."""

    num_images: Count = 40
    """Images in the report: so many of the most uncertain, and as many typical ones."""


class ClusterSection(Section):
    """Where to run and how much of it to use; null takes what is there."""

    address: str | None = None
    """Address of a Ray cluster; null: the cluster around, or this machine."""
    num_cpus: Count | None = None
    """CPUs of a Ray started on this machine."""
    num_replicas: Count | None = None
    """Copies of a model that work at once."""
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each copy of a model; a fraction lets several share one."""
    max_gpus: Count | None = None
    """Upper bound of GPUs for autoscaling; null: the GPUs in the cluster now."""
    num_threads: Count = 2
    """Threads of each replica and training worker; fixed, not what a machine has, so that bytes do not change."""
    train_workers: Count | tuple[Count, Count] = 1
    """Training workers, or [least, most]: as many as the cluster has room for."""
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0
    """Seconds between two checkpoints of a training."""

    @model_validator(mode="after")
    def _least_first(self) -> ClusterSection:
        if isinstance(self.train_workers, tuple) and self.train_workers[0] > self.train_workers[1]:
            raise ValueError(f"train_workers is [least, most], got {list(self.train_workers)}")
        return self


class RunConfig(Section):
    """A whole run file."""

    run: str
    """The run folder, where everything is written: a path or URL, such as s3://bucket/runs/a."""
    dataset: Annotated[LabelledData | UnlabelledData, Field(discriminator="kind")]
    """Which images, and where their labels are."""
    labels: LabelsSection = LabelsSection()
    """Who says which classes an image shows (M8.2)."""
    vocabulary: VocabularyChoice
    """`voc12`, `coco14`, `toy`, or classes of one's own (M1)."""
    clip: ModelSection
    """The CLIP that says where each class is (M2)."""
    sam: ModelSection
    """The SAM that proposes superpixels (M5.1)."""
    shard_rows: Count = 32
    """Images of a shard: the unit of work, of retries and of files."""
    random_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random; the same seed gives the same bytes."""
    max_failures: Percentage = 1.0
    """Share of a stage's images that may fail, such as 0.01 or `1 %`; more end the run."""
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """GPU hours that the run may take in its whole life, of all machines of its cluster; then it ends in order."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Money that the run may take in its whole life, by `prices`; then it ends in order."""
    prices: PricesSection = PricesSection()
    """What an hour of the cluster's machines costs."""
    limits: ImageLimits = ImageLimits()
    """What an image may be, checked before it is decoded."""
    propose: ProposeSection = ProposeSection()
    """SAM's automatic masks (M5.1)."""
    proposals: str | None = None
    """A folder or URL of superpixels that runs share, by image, SAM and settings."""
    prompts: str | None = None
    """A run whose prompts are taken; then none are learned, and `learn` is not read."""
    learn: LearnStages = LearnStages()
    """The two sets of learned prompts (M3 and M4); `none` learns none and makes seeds from hand-made ones."""
    seeds: SeedStages = SeedStages()
    """From class maps and superpixels to seeds (M5.2)."""
    segmenter: SegmenterSection | None = None
    """The second stage; null trains none (M7)."""
    predict: PredictSection = PredictSection()
    """What a trained segmenter says of images (M5.3)."""
    preview: PreviewSection = PreviewSection()
    """The report that a person looks at."""
    cluster: ClusterSection = ClusterSection()
    """Where to run and how much of it to use."""
    tracking: TrackingSection = TrackingSection()
    """Trackers beside TensorBoard."""
    notify: NotifySection = NotifySection()
    """Who is told at the end."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_learned(cls, raw: Any) -> Any:
        """`learn: none` is hand-made prompts for those sets of seeds that do not say otherwise."""
        if not isinstance(raw, dict) or raw.get("learn") != "none":
            return raw
        seeds = raw.get("seeds") or {}
        if not isinstance(seeds, dict):
            return raw
        handmade = {which: {"prompts": "handmade", **(seeds.get(which) or {})} for which in ("coarse", "fine")}
        return {**{key: value for key, value in raw.items() if key != "learn"}, "seeds": {**seeds, **handmade}}

    @model_validator(mode="after")
    def _somebody_says_what_images_show(self) -> RunConfig:
        if self.dataset.kind == "unlabelled" and not self.labels.is_tagged:
            raise ValueError("`dataset` has no labels: write `labels: {from: clip}`, or give it some")
        return self

    @model_validator(mode="after")
    def _cost_has_prices(self) -> RunConfig:
        if self.max_cost is not None and not (self.prices.gpu_hour or self.prices.machine_hour):
            raise ValueError("`max_cost` needs `prices`: without them nothing is known to cost anything")
        return self

    @model_validator(mode="after")
    def _has_queries(self) -> RunConfig:
        own = self.segmenter
        if own and own.network == "deeplabv3plus" and not own.factory and self.predict.merge_queries != "sum":
            raise ValueError("`predict.merge_queries` is of a Mask2Former: `network: deeplabv3plus` has no queries")
        return self

    @model_validator(mode="after")
    def _maps_of_new_images_can_be_made(self) -> RunConfig:
        if self.predict.cam_weight and given_sources(self.seeds.fine.source):
            raise ValueError("`predict.cam_weight` needs maps of what is predicted; `seeds.fine.source` has given ones")
        return self

    @model_validator(mode="after")
    def _renewed_seeds_are_of_single_images(self) -> RunConfig:
        if self.learn.joint_every is not None and self.seeds.coarse.foreground:
            raise ValueError("`seeds.coarse.foreground` can't be learned anew for every `learn.joint_every` iterations")
        return self

    def resolve_vocabulary(self) -> Vocabulary:
        """The classes of this run."""
        if isinstance(self.vocabulary, str):
            return vocabulary_named(self.vocabulary)
        own = self.vocabulary
        return custom_vocabulary(own.classes, prompts=own.prompts, backgrounds=own.backgrounds)
