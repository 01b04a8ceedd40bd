"""The schema of a run file: what every key may be and what it is when it is left out. `run_file` reads one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cluster.models import ModelSpec
from fmwsss_core.vocabulary import Vocabulary, custom_vocabulary, vocabulary_named


class Section(BaseModel):
    """A part of a run file: no unknown keys, no silent conversions, nothing changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Share = Annotated[float, Field(ge=0, le=1)]


def _percent(value: Any) -> Any:
    """`1 %` as the share that it is; anything else as it came."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        try:
            return float(value.rstrip().removesuffix("%")) / 100
        except ValueError:
            return value
    return value


Percentage = Annotated[Share, BeforeValidator(_percent)]
Count = Annotated[int, Field(ge=1)]


class ToyData(Section):
    """Scenes drawn by program: nothing to download."""

    kind: Literal["toy"]
    num_images: Count
    first_seed: Annotated[int, Field(ge=0)] = 0


class VocData(Section):
    """A PASCAL VOC layout; labels from Annotations, or else the classes of the masks in SegmentationClass."""

    kind: Literal["voc"]
    root: str
    split: str
    max_images: Count | None = None


class FolderData(Section):
    """A folder of images and a table (CSV or Parquet) of image ids and their classes."""

    kind: Literal["folder"]
    images: str
    labels: str
    truth: str | None = None
    split: str = "all"
    max_images: Count | None = None


class UnlabelledData(Section):
    """A folder of images without labels, for a segmenter to predict; truth is a folder of label PNGs named by id."""

    kind: Literal["unlabelled"]
    images: str
    truth: str | None = None
    split: str = "all"
    max_images: Count | None = None


class VocabularySection(Section):
    """Classes of one's own."""

    classes: list[str]
    prompts: list[str] | None = None
    backgrounds: list[str] | None = None  # null: those of VOC that are no word of a class or prompt


class ModelSection(Section):
    """Either `model` (with `weights` unless it is the toy one) or `factory`."""

    model: str | None = None
    weights: str | None = None
    sha256: str | None = None
    factory: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSection:
        if bool(self.model) == bool(self.factory):
            raise ValueError("give either `model` or `factory`")
        if self.factory and (self.weights or self.sha256):
            raise ValueError("a factory loads its own weights: leave out `weights` and `sha256`")
        if self.model == "toy" and (self.weights or self.sha256):
            raise ValueError("the toy model has its own weights: leave out `weights` and `sha256`")
        return self

    def spec(self) -> ModelSpec:
        """The same, as the cluster's rooms take it."""
        return ModelSpec(self.model, self.weights, self.sha256, self.factory)


class ImageLimits(Section):
    """What an image may be, checked before it is decoded."""

    max_pixels: Count = 64_000_000
    max_bytes: Count = 64_000_000


class ProposeSection(Section):
    """SAM's automatic masks with the three changes (method M5.1); the values are those of `ProposalSettings`."""

    points_per_side: Count = 32
    points_per_batch: Count | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compiled: bool = False  # torch.compile of the image encoder, kept beside fetched weights
    predicted_iou_threshold: Share = 0.86
    stability_threshold: Share = 0.92
    stability_offset: Annotated[float, Field(gt=0)] = 1.0
    box_nms_threshold: Share = 0.7
    crop_layers: Annotated[int, Field(ge=0, le=3)] = 0
    crop_downscale: Count = 2
    min_region_area_px: Annotated[int, Field(ge=0)] = 100
    whole_bonus: float = 0.1
    whole_priority: float = 1.0
    compat: bool = False
    occupation_threshold: Share | None = 0.3


class AugmentSection(Section):
    """Views of an image in training (method M3)."""

    long_side_px: tuple[Count, Count] = (288, 480)
    crop_px: Count = 224
    jitter: bool = True
    flip: bool = True


class LearnSection(Section):
    """One set of prompts and how it is learned (method M3 and M4)."""

    context: Literal["unified", "class-specific"]
    name_position: Literal["end", "front", "middle"]
    num_context: Count = 16
    init_std: Annotated[float, Field(gt=0)] = 0.02
    backgrounds: Literal["named", "learned"]
    num_backgrounds: Annotated[int, Field(ge=0)] = 25
    classification_loss: Literal["mcl", "bce"] = "mcl"
    cam_loss: Literal["cal", "relative-cal", "ce"] = "cal"
    cam_loss_weight: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[float, Field(gt=0)] | None = None  # or `iterations`; without either see `num_iterations`
    iterations: Count | None = None
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    warmup_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    augment: AugmentSection = AugmentSection()
    cache: Literal["input", "product"] | None = None  # what is kept of fixed views; null draws a new view each time
    cached_views: Count = 4
    # Of both towers; maps and losses are always float32. Null: bfloat16 on a GPU, float32 on a CPU.
    precision: Literal["float32", "bfloat16"] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> LearnSection:
        if self.epochs is not None and self.iterations is not None:
            raise ValueError("give either `epochs` or `iterations`")
        return self

    def num_iterations(self, batches_per_epoch: int) -> int:
        """How long to learn: as told, or 25 epochs within 200 to 1,800 iterations.

        25 epochs are the paper's for VOC and 1,800 iterations the authors'; a few images alone need more than 25
        looks at each, and prompts of one context have no use for more than the authors' length.
        """
        if self.iterations is not None:
            return self.iterations
        if self.epochs is not None:
            return max(1, round(self.epochs * batches_per_epoch))
        return min(1800, max(200, 25 * batches_per_epoch))

    def check_warmup(self, name: str, num_iterations: int) -> None:
        """ValueError if there is nothing but warm-up; `name` is the key of these settings below `learn`."""
        if self.warmup_iterations >= num_iterations:
            raise ValueError(
                f"prompts/{name} would take {num_iterations} iterations, and learn.{name}.warmup_iterations is "
                f"{self.warmup_iterations}: nothing would be learned; lower it, or raise epochs"
            )


class LearnStages(Section):
    """The two sets of prompts, in the order in which they are learned.

    `joint_every` is the paper's joint loss: every so many iterations the segmentation prompts get new coarse seeds,
    from the classification prompts as they were at that iteration. Left out, they get those of the final ones.
    """

    classification: LearnSection
    segmentation: LearnSection
    joint_every: Count | None = None


class SeedSection(Section):
    """From maps and superpixels to a seed (method M2.2 and M5.2).

    `maps` says which maps classify the superpixels; both are stored and judged. `method`: superpixels classified by the
    maps (`sams`), or what it is compared with: a dense CRF on the maps (`crf`), SEPL voting, or the maps alone. Maps at
    several `scales` are averaged; the papers have one.
    """

    method: Literal["sams", "crf", "voting", "threshold"] = "sams"
    ignore_below: Share = 0.0  # pixels of lower confidence become 255; CLIP-ES has .95 with its CRF
    keep_labelled: bool = False  # never let a labelled class vanish
    maps: Literal["cam", "cam+caa"] = "cam+caa"
    alpha: Annotated[float, Field(gt=0)]
    box_threshold: Share | None
    num_sinkhorn: Annotated[int, Field(ge=0)] = 1
    num_attention_blocks: Count = 8  # CLIP-ES: the last 8 of 12 make the affinity; all, where a CLIP has fewer
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1)] = (1.0,)

    @model_validator(mode="after")
    def _only_superpixels_can_be_given_away(self) -> SeedSection:
        if self.keep_labelled and self.method != "sams":
            raise ValueError("`keep_labelled` needs `method: sams`")
        return self


class SeedStages(Section):
    """Coarse seeds from the classification prompts, fine seeds from the segmentation prompts."""

    coarse: SeedSection
    fine: SeedSection
    png: bool = True
    confidence: bool = True


class SegmenterSection(Section):
    """The second stage: a segmenter trained on the seeds (method M7). Leave the section out and none is trained."""

    network: Literal["mask2former", "deeplabv3plus"] = "mask2former"
    engine: Literal["ray", "detectron2"] | None = None  # null: detectron2 where it is installed, else ray
    backbone: dict[str, Any] = {"model_type": "swin"}  # of a Mask2Former: a backbone's configuration in transformers
    options: dict[str, Any] = {}  # settings of transformers' Mask2FormerConfig
    resnet: str = "resnet101"  # of a DeepLabV3+
    weights: str | None = None  # to begin with: of the whole network, or of its backbone
    weights_sha256: str | None = None  # of a DeepLabV3+'s, which from a URL must have it
    factory: str | None = None
    rounds: Annotated[int, Field(ge=1, le=5)] = 1  # of training and, between them, making better seeds by refinement

    iterations: Count = 80_000
    batch_size: Count = 16
    micro_batches: Count = 1  # in how many pieces each worker's share goes through the network
    precision: Literal["float32", "bfloat16"] | None = None  # null: bfloat16 on a GPU, float32 on a CPU
    crop_px: Count = 512
    short_side_px: Count = 512
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    category_cap: Share = 0.75
    distort: bool = True
    flip: bool = True
    paste: Share = 0.0  # of the crops, that get a class of another one laid over them

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    backbone_multiplier: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = 0.01
    power: Annotated[float, Field(ge=0)] = 0.9
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    confidence_weights: bool = False  # weigh each pixel's loss by its seed's confidence

    preview_every: Count = 1000  # iterations between pictures of predictions in TensorBoard
    validation: Annotated[ToyData | VocData | FolderData | UnlabelledData, Field(discriminator="kind")] | None = None
    validate_every: Count | None = None  # iterations; needs truth. Only `keep: best` lets it decide anything
    keep: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _best_of_what(self) -> SegmenterSection:
        if self.keep == "best" and not (self.validation and self.validate_every):
            raise ValueError("`keep: best` needs `validation` with truth, and `validate_every`")
        if self.validate_every and not self.validation:
            raise ValueError("`validate_every` needs `validation`: images with truth")
        if self.factory and self.weights:
            raise ValueError("a factory loads its own weights: leave out `weights`")
        if self.weights_sha256 and not (self.weights and self.network == "deeplabv3plus"):
            raise ValueError("`weights_sha256` is of the one file that `network: deeplabv3plus` takes as `weights`")
        if self.paste and self.batch_size < 2:
            raise ValueError("`paste` takes a class from another crop of the batch: `batch_size` must be 2 at least")
        return self


class PredictSection(Section):
    """What a trained segmenter says of images, and its refinement (method M5.3)."""

    scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [1.0]
    flip: bool = False
    merge_queries: Literal["sum", "max"] = "sum"  # of a Mask2Former, that name one class; authors: sum
    refine: Literal["sams", "crf"] | None = "sams"
    alpha: Annotated[float, Field(gt=0)] = 3.0
    cam_weight: Share = 0.0  # of CLIP's class maps, beside the segmenter's probabilities, in `refine: sams`
    png: bool = True

    @model_validator(mode="after")
    def _check(self) -> PredictSection:
        if self.cam_weight and self.refine != "sams":
            raise ValueError("`cam_weight` needs `refine: sams`")
        return self


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
