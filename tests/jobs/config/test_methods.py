"""Every number of `configs/methods` against a table with its source (docs/method.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmwsss.jobs.config.load import load_config
from fmwsss.jobs.config.run_file import method_layer

CONFIGS = Path(__file__).parents[3] / "configs"
METHODS = ("paper", "authors", "ours")

# Key, the value of each method in the order of METHODS, source.
COMMON: list[tuple[str, Any, Any, Any, str]] = [
    ("learn.joint_every", None, None, None, "M4: how often the paper renews seeds is not told"),
    ("learn.classification.context", "unified", "unified", "unified", "M3"),
    ("learn.classification.name_position", "end", "end", "end", "M3"),
    ("learn.classification.backgrounds", "named", "named", "named", "M1"),
    ("learn.classification.num_context", 16, 16, 16, "M3"),
    ("learn.classification.init_std", 0.02, 0.015, 0.02, "CoOp; A: ctx_std of VOC/cls"),
    ("learn.classification.classification_loss", "mcl", "mcl", "mcl", "P table 5"),
    ("learn.classification.cam_loss", "cal", "cal", "cal", "weighed 0"),
    ("learn.classification.classification_weight", 1, 1, 1, "P eq. 11-15; A cls_only"),
    ("learn.classification.cam_weight", 0, 0, 0, "P eq. 11-15; A cls_only"),
    ("learn.classification.mean_over", "image", "batch", "batch", "M4; A pos_mean"),
    ("learn.classification.cam_map", "rectified", "raw", "raw", "weighed 0"),
    ("learn.classification.batch_size", 16, 16, 16, "M3"),
    ("learn.classification.learning_rate", 1e-3, 1e-3, 1e-3, "M3"),
    ("learn.classification.augment.jitter", "authors", "authors", True, "M3"),
    ("learn.segmentation.context", "class-specific", "class-specific", "class-specific", "P table 2"),
    ("learn.segmentation.name_position", "front", "front", "front", "P table 2"),
    ("learn.segmentation.backgrounds", "learned", "learned", "learned", "P table 2"),
    ("learn.segmentation.num_backgrounds", 25, 25, 25, "M3"),
    ("learn.segmentation.num_context", 16, 16, 16, "M3"),
    ("learn.segmentation.init_std", 0.02, 0.0125, 0.02, "CoOp; A: ctx_std of clip_cam/base"),
    ("learn.segmentation.classification_loss", "mcl", "mcl", "mcl", "weighed 0 but in ours"),
    ("learn.segmentation.cam_loss", "cal", "cal", "relative-cal", "P table 5; ours M4"),
    ("learn.segmentation.classification_weight", 0, 0, 1, "P eq. 11-15; A l1/base; ours M4"),
    ("learn.segmentation.cam_weight", 1, 1, 5, "P eq. 11-15; A clip_cam/base; ours docs/benchmarks.md"),
    ("learn.segmentation.mean_over", "image", "batch", "batch", "M4; A reduce=all"),
    ("learn.segmentation.cam_map", "rectified", "raw", "raw", "M4"),
    ("learn.segmentation.batch_size", 16, 16, 16, "M3"),
    ("learn.segmentation.learning_rate", 1e-3, 1e-3, 1e-3, "M3"),
    ("learn.segmentation.augment.jitter", "authors", "authors", True, "M3"),
    ("seeds.coarse.method", "sams", "sams", "sams", "M5.2"),
    ("seeds.coarse.source.kind", "gradcam", "gradcam", "patch", "M2; ours M11"),
    ("seeds.coarse.prompts", "learned", "learned", "handmade", "M3; ours docs/quality.md"),
    ("seeds.coarse.uncovered", "background", "background", "map", "M5.2"),
    ("seeds.coarse.foreground", None, None, None, "M5.5"),
    ("seeds.coarse.maps", "cam+caa", "cam+caa", "cam", "M2.2"),
    ("seeds.coarse.alpha", 0.6, 0.6, 0.4, "M5.2; ours docs/quality.md"),
    ("seeds.coarse.box_threshold", 0.4, 0.4, 0.4, "M2.2"),
    ("seeds.coarse.box_on", "result", "map", "map", "P eq. 4; M2.2"),
    ("seeds.coarse.affinity_map", "normalised", "normalised", "normalised", "M2.2"),
    ("seeds.coarse.num_sinkhorn", 1, 1, 1, "M2.2"),
    ("seeds.coarse.num_attention_blocks", 8, 8, 8, "M2.2"),
    ("seeds.coarse.scales", [1.0], [1.0], [1.0], "M2"),
    ("seeds.coarse.keep_labelled", False, False, False, "M12.3"),
    ("seeds.coarse.ignore_below", 0.0, 0.0, 0.0, "M5.2"),
    ("seeds.fine.method", "sams", "sams", "sams", "M5.2"),
    ("seeds.fine.source.kind", "gradcam", "gradcam", "patch", "M2; ours M11"),
    ("seeds.fine.prompts", "learned", "learned", "handmade", "M3; ours docs/quality.md"),
    ("seeds.fine.uncovered", "background", "background", "map", "M5.2"),
    ("seeds.fine.foreground", None, None, "both", "M5.5"),
    ("seeds.fine.maps", "cam+caa", "cam+caa", "cam", "M2.2"),
    ("seeds.fine.alpha", 0.6, 0.7, 0.4, "M5.2; ours docs/quality.md"),
    ("seeds.fine.box_threshold", 0.4, 0.5, 0.4, "M2.2"),
    ("seeds.fine.box_on", "result", "map", "map", "P eq. 4; M2.2"),
    ("seeds.fine.affinity_map", "normalised", "raw", "normalised", "M2.2"),
    ("seeds.fine.num_sinkhorn", 1, 1, 1, "M2.2"),
    ("seeds.fine.num_attention_blocks", 8, 8, 8, "M2.2"),
    ("seeds.fine.scales", [1.0], [1.0], [1.0], "M2"),
    ("seeds.fine.keep_labelled", False, False, False, "M12.3"),
    ("seeds.fine.ignore_below", 0.0, 0.0, 0.0, "M5.2"),
    ("predict.alpha", 3.0, 3.0, 3.0, "M5.3"),
    ("predict.uncovered", "background", "background", "segmenter", "M5.3"),
    ("predict.cam_weight", 0.0, 0.0, 0.0, "M5.3"),
]
# What a vocabulary adds, or changes of the above.
OF_VOCABULARY: dict[str, list[tuple[str, Any, Any, Any, str]]] = {
    "custom": [],
    "voc12": [
        ("learn.classification.epochs", 25, None, 25, "P; M3"),
        ("learn.classification.iterations", None, 1800, None, "A; M3"),
        ("learn.classification.warmup_iterations", 500, 500, 500, "A; M3"),
        ("learn.classification.augment.long_side_px", [288, 480], [288, 480], [288, 480], "A; M3"),
        ("learn.classification.augment.crop_px", 224, 224, 224, "A; M3"),
        ("learn.segmentation.epochs", 25, None, 25, "P; M3"),
        ("learn.segmentation.iterations", None, 17000, None, "A; M3"),
        ("learn.segmentation.warmup_iterations", 500, 500, 500, "A; M3"),
        ("learn.segmentation.augment.long_side_px", [288, 480], [288, 480], [288, 480], "A; M3"),
        ("learn.segmentation.augment.crop_px", 224, 224, 224, "A; M3"),
    ],
    "coco14": [
        ("learn.classification.epochs", 10, None, 10, "P; M3"),
        ("learn.classification.iterations", None, 20500, None, "A; M3"),
        ("learn.classification.warmup_iterations", 1000, 1000, 1000, "A; M3"),
        ("learn.classification.augment.long_side_px", [318, 530], [318, 530], [318, 530], "A; M3"),
        ("learn.classification.augment.crop_px", 224, 224, 224, "A; M3"),
        ("learn.segmentation.context", "class-specific", "unified", "class-specific", "M3"),
        ("learn.segmentation.name_position", "front", "end", "front", "M3"),
        ("learn.segmentation.backgrounds", "learned", "named", "learned", "M3"),
        ("learn.segmentation.init_std", 0.02, 0.015, 0.02, "CoOp; A: ctx_std of COCO/seg"),
        ("learn.segmentation.epochs", 10, None, 10, "P; M3"),
        ("learn.segmentation.iterations", None, 75000, None, "A; M3"),
        ("learn.segmentation.warmup_iterations", 1000, 1000, 1000, "A; M3"),
        ("learn.segmentation.augment.long_side_px", [318, 530], [318, 530], [318, 530], "A; M3"),
        ("learn.segmentation.augment.crop_px", 224, 224, 224, "A; M3"),
        ("seeds.coarse.alpha", 0.6, 0.4, 0.4, "M5.2: A best of .3, .4, .5 on ground truth"),
        ("seeds.coarse.box_threshold", 0.7, 0.6, 0.7, "M2.2"),
        ("seeds.coarse.affinity_map", "normalised", "raw", "normalised", "M2.2"),
        ("seeds.fine.alpha", 0.6, 1.0, 0.4, "M5.2"),
        ("seeds.fine.box_threshold", 0.7, None, None, "M2.2; ours M12.1"),
        ("seeds.fine.affinity_map", "normalised", "raw", "normalised", "not used: A seeds the plain CAM"),
        ("seeds.fine.maps", "cam+caa", "cam", "cam", "M2.2"),
    ],
}
OF_NETWORK: dict[str, list[tuple[str, Any, Any, Any, str]]] = {
    "mask2former": [
        ("segmenter.batch_size", 16, 4, 16, "M12.4: bt4"),
        ("segmenter.rate_floor", 0.0, 0.0, 0.0, "M7"),
    ],
    "deeplabv3plus": [
        ("segmenter.batch_size", 16, 16, 16, "M12.4: bt16"),
        ("segmenter.resnet", "resnet101", "resnet101_v1c", "resnet101", "M12.4"),
        ("segmenter.rate_floor", 0.01, 0.01, 0.0, "M12.4: 1e-4 below .01"),
    ],
}


def flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {name: leaf for own, inner in value.items() for name, leaf in flat(inner, f"{key}.{own}".strip(".")).items()}


def expected(method: str, rows: list[tuple[str, Any, Any, Any, str]]) -> dict[str, Any]:
    return {row[0]: row[1 + METHODS.index(method)] for row in rows}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vocabulary", OF_VOCABULARY)
def test_every_number_of_a_method_is_the_one_of_its_source(method: str, vocabulary: str) -> None:
    rows = COMMON + OF_VOCABULARY[vocabulary]
    assert flat(method_layer(method, vocabulary)) == expected(method, rows)
    if vocabulary != "custom":
        for network, more in OF_NETWORK.items():
            assert flat(method_layer(method, vocabulary, network)) == expected(method, rows + more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["voc12", "coco14", "voc12_deeplab", "coco14_deeplab", "voc12_segmenter", "own"])
def test_a_run_file_with_a_method_has_all_its_numbers(method: str, name: str) -> None:
    """So that of two methods laid over one run file nothing of the first is left: all of them set the same keys."""
    config = load_config(str(CONFIGS / f"{name}.yaml"), [f"method={method}"])
    segmenter = config.segmenter
    vocabulary = config.vocabulary if isinstance(config.vocabulary, str) else "custom"
    layer = flat(method_layer(method, vocabulary, segmenter.network if segmenter else None))
    has = flat(config.model_dump(mode="json"))
    assert {key: has[key] for key in layer} == layer
    if name in ("voc12", "coco14"):
        plain = load_config(str(CONFIGS / f"{name}.yaml"))
        assert (plain == config) == (method == "paper")


# What the run files say beside their methods; section 5.1 and 7 of docs/method.md.
RUN_FILES: dict[str, dict[str, tuple[Any, str]]] = {
    "voc12": {
        "propose.points_per_side": (32, "A; M5.1"),
        "propose.predicted_iou_threshold": (0.86, "A; M5.1"),
        "propose.stability_threshold": (0.92, "A; M5.1"),
        "propose.stability_offset": (1.0, "A; M5.1"),
        "propose.box_nms_threshold": (0.7, "A; M5.1"),
        "propose.crop_layers": (1, "A; M5.1"),
        "propose.crop_downscale": (2, "A; M5.1"),
        "propose.min_region_area_px": (100, "A; M5.1"),
        "propose.whole_bonus": (0.1, "P: .76 for wholes; M5.1"),
        "propose.whole_priority": (1.0, "A; M5.1"),
        "propose.occupation_threshold": (0.3, "P: t_r; M5.1"),
        "learn.segmentation.momentum": (0.9, "M3"),
        "learn.segmentation.weight_decay": (5e-4, "M3"),
        "learn.segmentation.warmup_learning_rate": (1e-5, "M3"),
    },
    "coco14": {
        "propose.points_per_side": (32, "A; M5.1"),
        "propose.crop_layers": (1, "A; M5.1"),
        "propose.crop_downscale": (2, "A; M5.1"),
        "propose.occupation_threshold": (0.3, "P: t_r; M5.1"),
    },
    "voc12_segmenter": {
        "segmenter.options": ({"num_queries": 50}, "A; M7"),
        "segmenter.iterations": (80_000, "A; M7"),
        "segmenter.crop_px": (512, "A; M7"),
        "segmenter.short_side_px": (512, "A; M7"),
        "segmenter.scale_range": ([0.5, 2.0], "A; M7"),
        "segmenter.category_cap": (0.75, "A; M7"),
        "segmenter.learning_rate": (1e-4, "A; M7"),
        "segmenter.weight_decay": (0.05, "A; M7"),
        "segmenter.backbone_multiplier": (0.1, "A; M7"),
        "segmenter.clip_norm": (0.01, "A; M7"),
        "segmenter.power": (0.9, "A; M7"),
        "predict.scales": ([1.0], "A; M7"),
        "predict.refine": (None, "A; M7"),
    },
    "coco14_segmenter": {
        "segmenter.options": ({"num_queries": 100}, "M12.4: COCO has 81 classes"),
        "segmenter.iterations": (100_000, "A; M7"),
    },
    "voc12_deeplab": {
        "segmenter.iterations": (80_000, "A; M7"),
        "segmenter.optimizer": ("sgd", "A; M7"),
        "segmenter.learning_rate": (0.01, "A; M7"),
        "segmenter.weight_decay": (5e-4, "mmsegmentation; M12.4"),
        "segmenter.rate_floor": (0.01, "mmsegmentation; M12.4"),
        "segmenter.power": (0.9, "A; M7"),
        "predict.scales": ([0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "A; M7"),
        "predict.flip": (True, "A; M7"),
        "predict.refine": ("sams", "A; M7"),
    },
    "coco14_deeplab": {
        "segmenter.iterations": (160_000, "A; M7"),
        "segmenter.optimizer": ("sgd", "A; M7"),
        "segmenter.learning_rate": (0.01, "A; M7"),
        "predict.scales": ([0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "A; M7"),
        "predict.flip": (True, "A; M7"),
        "predict.refine": ("sams", "A; M7"),
    },
}


@pytest.mark.parametrize("name", RUN_FILES)
def test_every_other_number_of_a_run_file_is_the_one_of_its_source(name: str) -> None:
    has = flat(load_config(str(CONFIGS / f"{name}.yaml")).model_dump(mode="json"))
    has["segmenter.options"] = {key[18:]: value for key, value in has.items() if key.startswith("segmenter.options.")}
    assert {key: has[key] for key in RUN_FILES[name]} == {key: value for key, (value, _) in RUN_FILES[name].items()}
