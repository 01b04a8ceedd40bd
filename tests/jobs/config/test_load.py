"""Mistakes in a run file: each is one line that names the key, and all are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmwsss.jobs.config.load import ConfigError, load_config
from fmwsss.jobs.steps import stages_of

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_our_run_files_are_valid(name: str) -> None:
    assert load_config(str(CONFIGS / name)).shard_rows >= 1


def test_overrides_are_laid_over_the_file() -> None:
    overrides = ["propose.points_per_side=5", "seeds.fine.box_threshold=null", "learn.segmentation.augment.crop_px=64"]
    config = load_config(str(CONFIGS / "demo.yaml"), overrides)
    assert config.propose.points_per_side == 5
    assert config.seeds.fine.box_threshold is None
    assert config.learn.segmentation.augment.crop_px == 64
    assert config.learn.segmentation.augment.long_side_px == (112, 160)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("propose.point_per_side=8", "Unknown key: 'propose.point_per_side'; did you mean 'propose.points_per_side'?"),
        ("dataset.num_image=3", "Unknown key: 'dataset.num_image'; did you mean 'dataset.num_images'?"),
        ("runn=x", "Unknown key: 'runn'; did you mean 'run'?"),
        ("seeds.coarse.alpha=-1", "'seeds.coarse.alpha': input should be greater than 0 (given: -1)"),
        ("learn.segmentation.context=shared", "'learn.segmentation.context': input should be 'unified' or"),
        ("learn.classification.cam_weight=1", "`cam_weight` needs seeds, and there are none before these prompts"),
        ("learn.classification.classification_weight=0", "must be larger than 0: nothing would be learned"),
        ("learn.segmentation={classification_weight: 0, cam_weight: 0}", "are both 0"),
        ("clip={model: toy, factory: 'a:b'}", "'clip': give either `model` or `factory`"),
        ("sam={factory: 'a:b', weights: w.pt}", "'sam': a factory loads its own weights"),
        ("clip.weights=w.pt", "'clip': the toy model has its own weights"),
        ("dataset.kind=imagenet", "'dataset': input tag 'imagenet'"),
        ("vocabulary=voc13", "vocabulary: there is no vocabulary 'voc13'"),
        ("cluster.train_workers=[2,1]", "train_workers is [least, most], got [2, 1]"),
        ("propose.points_per_side", "an override looks like key=value"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(str(CONFIGS / "demo.yaml"), [override])
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["voc12", "coco14"])
def test_presets_of_the_paper_learn_what_the_paper_has_them_learn(name: str) -> None:
    """M4: classification prompts by MCL, segmentation prompts by CAL alone. Defaults are for own images."""
    learn = load_config(name).learn
    assert (learn.classification.classification_weight, learn.classification.cam_weight) == (1, 0)
    second = learn.segmentation
    assert (second.classification_weight, second.cam_weight, second.cam_loss) == (0, 1, "cal")


def test_the_former_weight_of_the_loss_on_maps_is_understood_and_told(capsys) -> None:
    plain = load_config(str(CONFIGS / "demo.yaml"))
    old = load_config(
        str(CONFIGS / "demo.yaml"), ["learn.segmentation.cam_loss_weight=5", "learn.classification.cam_loss_weight=0"]
    )
    assert old == plain
    told = capsys.readouterr().err
    assert "'learn.segmentation.cam_loss_weight' is read as classification_weight: 1, cam_weight: 5" in told
    load_config(str(CONFIGS / "demo.yaml"))
    assert capsys.readouterr().err == ""


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(str(CONFIGS / "demo.yaml"), ["runn=x", "seeds.coarse.alpha=0", "propose.crop_layers=9"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_key_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: here\nvocabulary: voc12\n")
    with pytest.raises(ConfigError, match="Missing key: 'dataset'"):
        load_config(str(tmp_path / "run.yaml"))
    with pytest.raises(ConfigError, match="no run file at"):
        load_config(str(tmp_path / "none.yaml"))


def test_own_classes_have_rivals_by_default_and_none_by_wish() -> None:
    """With no background word, an image of one label would have a map of zeros (`test_cam`)."""
    own, none = (
        load_config(str(CONFIGS / "own.yaml"), [f"vocabulary={{classes: [horse, lake]{more}}}"]).resolve_vocabulary()
        for more in ("", ", backgrounds: []")
    )
    assert len(own.backgrounds) == 24
    assert "lake" not in own.backgrounds
    assert none.backgrounds == ()
    config = load_config(str(CONFIGS / "demo.yaml"), ["learn.segmentation.num_backgrounds=0"])
    assert config.learn.segmentation.num_backgrounds == 0


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is no YAML"):
        load_config(str(tmp_path / "run.yaml"))


def test_a_run_file_is_laid_over_its_base(tmp_path: Path) -> None:
    plain, more = (load_config(str(CONFIGS / f"{name}.yaml")) for name in ("demo", "demo_segmenter"))
    assert plain.segmenter is None
    assert more.segmenter is not None
    assert (more.cluster.train_workers, more.cluster.num_threads) == ((1, 2), plain.cluster.num_threads)
    own = ("run", "dataset", "prompts", "segmenter", "predict", "cluster")
    assert more.model_copy(update={name: getattr(plain, name) for name in own}) == plain
    (tmp_path / "own.yaml").write_text(f"base: {CONFIGS / 'demo.yaml'}\nseeds: {{fine: {{alpha: 2.5}}}}\n")
    own = load_config(str(tmp_path / "own.yaml"))
    assert own.seeds.fine.alpha == 2.5
    assert own.seeds.fine.maps == plain.seeds.fine.maps
    assert own.seeds.coarse == plain.seeds.coarse


@pytest.mark.parametrize(
    ("text", "message"),
    [("base: absent.yaml", "no run file at .*absent.yaml"), ("base: own.yaml", "each other's `base`")],
)
def test_a_base_that_cannot_be_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "own.yaml"))


def test_mistakes_of_the_segmenter_are_told() -> None:
    path = str(CONFIGS / "demo_segmenter.yaml")
    for override, message in (
        ("segmenter.keep=best", "`keep: best` needs `validation` with truth, and `validate_every`"),
        ("segmenter.iteration=5", "did you mean 'segmenter.iterations'"),
        ("segmenter.validation.num_image=5", "did you mean 'segmenter.validation.num_images'"),
        ("predict.scales=[]", "'predict.scales'"),
        ("segmenter.batch_size=1", "`paste` takes a class from another crop"),
        ("segmenter.network=deeplabv3plus", "`predict.merge_queries` is of a Mask2Former"),
        (f"segmenter.weights_sha256={'a' * 64}", "`weights_sha256` is of the one file that `network: deeplabv3plus`"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(path, [override])


def test_a_run_file_takes_several_bases_and_a_method(tmp_path: Path) -> None:
    demo = CONFIGS / "demo.yaml"
    (tmp_path / "shorter.yaml").write_text("learn: {segmentation: {epochs: 1, momentum: 0.5}}\n")
    (tmp_path / "own.yaml").write_text(f"base: [{demo}, shorter.yaml]\nlearn: {{segmentation: {{epochs: 2}}}}\n")
    own, plain = load_config(str(tmp_path / "own.yaml")), load_config(str(demo))
    assert (own.learn.segmentation.epochs, own.learn.segmentation.momentum) == (2, 0.5)
    assert own.seeds == plain.seeds

    (tmp_path / "with.yaml").write_text(f"base: {demo}\nmethod: paper\nseeds: {{fine: {{alpha: 9.0}}}}\n")
    with_method = load_config(str(tmp_path / "with.yaml"))
    assert with_method.learn.segmentation.classification_weight == 0
    assert (with_method.seeds.fine.alpha, with_method.seeds.coarse.alpha) == (9.0, 0.6), "own keys lie on top"
    over = load_config(str(tmp_path / "with.yaml"), ["seeds.coarse.alpha=7", "method=authors"])
    assert (over.seeds.fine.alpha, over.seeds.coarse.alpha) == (0.7, 7), "the command line lies over the file"

    (tmp_path / "mine.yaml").write_text("seeds: {fine: {alpha: 3.0}}\nfor: {toy: {seeds: {coarse: {alpha: 4.0}}}}\n")
    mine = load_config(str(demo), [f"method={tmp_path / 'mine.yaml'}"])
    assert (mine.seeds.fine.alpha, mine.seeds.coarse.alpha) == (3.0, 4.0)
    with pytest.raises(ConfigError, match="there is no method 'papers'; there are authors, ours, paper"):
        load_config(str(demo), ["method=papers"])


def test_ours_is_what_the_demo_does() -> None:
    plain, more = str(CONFIGS / "demo.yaml"), str(CONFIGS / "demo_segmenter.yaml")
    assert load_config(more, ["method=ours"]) == load_config(more)
    # Without a segmenter nothing is predicted.
    own = load_config(plain, ["method=ours"])
    assert own.model_copy(update={"predict": load_config(plain).predict}) == load_config(plain)


def test_an_override_of_one_place_leaves_its_alias_alone(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"base: {CONFIGS / 'demo.yaml'}\nseeds:\n  coarse: &both {{alpha: 2.0}}\n  fine: *both\n"
    )
    own = load_config(str(tmp_path / "own.yaml"), ["seeds.fine.alpha=5"])
    assert (own.seeds.coarse.alpha, own.seeds.fine.alpha) == (2.0, 5)


def test_none_learns_nothing_and_takes_hand_made_prompts() -> None:
    """CLIP-ES, as a row of the paper's tables: no prompts are learned, and the templates are a choice."""
    plain = load_config(str(CONFIGS / "demo.yaml"))
    none = load_config(str(CONFIGS / "demo.yaml"), ["learn=none", "seeds.coarse.templates=['a {}.', 'one {}.']"])
    assert (none.seeds.coarse.prompts, none.seeds.fine.prompts) == ("handmade", "handmade")
    assert none.seeds.coarse.templates == ("a {}.", "one {}.")
    assert none.seeds.fine == plain.seeds.fine.model_copy(update={"prompts": "handmade"})
    assert not [stage.name for stage in stages_of(none) if stage.name.startswith(("prompts", "features"))]
    one = load_config(str(CONFIGS / "demo.yaml"), ["learn=none", "seeds.fine.prompts=learned"])
    assert (one.seeds.coarse.prompts, one.seeds.fine.prompts) == ("handmade", "learned")
