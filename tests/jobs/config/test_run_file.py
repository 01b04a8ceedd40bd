"""The text of a run file: what YAML would take in silence, or for ever, is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmwsss.jobs.config.load import ConfigError, load_config
from fmwsss.jobs.config.run_file import preset_names
from fmwsss.jobs.config.yaml_text import MAX_BYTES, read_yaml

OWN = """run: runs/mine
dataset: {kind: folder, images: photos/, labels: labels.csv}
vocabulary: {classes: [horse, car]}
clip: {model: ViT-B-16-quickgelu, weights: openai}
sam: {model: vit_h, weights: sam.pth}
"""


def written(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return str(folder / "mine.yaml")


def test_a_key_that_is_given_twice_is_told_by_name_and_line() -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml("run: a\ndataset:\n  images: x\n  images: y\nrun: b\n", "mine.yaml")
    assert str(caught.value).splitlines() == [
        "mine.yaml: 'dataset.images' is given twice, in lines 3 and 4",
        "mine.yaml: 'run' is given twice, in lines 1 and 5",
    ]
    with pytest.raises(ConfigError, match="'images' is given twice"):
        load_config("demo", ["dataset={kind: folder, images: a, images: b}"])


def laughs(num_levels: int) -> str:
    lines = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, num_levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(18), "more than 10,000 values"),
        ("a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000)), "more than 20 deep"),
        ("a: &a [1, *a]", "holds itself"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 20 deep"),
        ("run: [a", "is no YAML"),
        ("run: 2024-13-40", "is no YAML"),
        ("run: a\n---\nrun: b", "is no YAML"),
        ("run: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_what_no_run_file_has_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "mine.yaml")


def test_files_that_are_no_run_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "latin.yaml").write_bytes("run: a\nvocabulary: {classes: [Kühe]}\n".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    for name, message in (
        ("large.yaml", "more than 262,144 bytes"),
        ("latin.yaml", "latin.yaml, line 2: this is not UTF-8"),
        ("folder.yaml", "is a folder, not a run file"),
        ("none.yaml", "no run file at"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(str(tmp_path / name))


def test_class_names_keep_their_umlauts_and_lose_their_spaces(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff" + OWN.replace("[horse, car]", '[" Kühe ", car]'))
    assert load_config(path).resolve_vocabulary().classes == ("Kühe", "car")


def test_an_override_changes_one_use_of_an_anchor(tmp_path: Path) -> None:
    path = written(tmp_path, OWN + "seeds: {coarse: &same {alpha: 0.5}, fine: *same}\n")
    seeds = load_config(path, ["seeds.fine.alpha=2"]).seeds
    assert (seeds.coarse.alpha, seeds.fine.alpha) == (0.5, 2)


@pytest.mark.parametrize("name", ["background", "_background_", "BG", "ignore", "void", "unlabeled"])
def test_background_is_no_class(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is no class: index 0 is background already"):
        load_config(written(tmp_path, OWN), [f"vocabulary.classes=[{name}, horse]"])


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("{classes: [horse, car], prompts: [animal, Animal]}", "'horse' and 'car' have one prompt, 'Animal'"),
        ("{classes: [car, Car]}", "'car' and 'Car' have one prompt"),
        ("{classes: [no, horse]}", "YAML reads no, off, yes and on as False; put it in quotes"),
        ("{classes: [7, horse]}", r"\(given: 7\); put it in quotes"),
        ("{classes: {1: horse, 2: car}}", "names with indices have all of 0, 1, 2"),
        ("{classes: {horse: 0, car: 1}}", "names with indices have all of 0, 1, 2"),
        ("[horse, car]", "'vocabulary'"),
        ("{classes: horse}", "'vocabulary.classes'"),
    ],
)
def test_mistakes_in_classes_are_one_line(tmp_path: Path, vocabulary: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(tmp_path, OWN), [f"vocabulary={vocabulary}"])
    assert len(str(caught.value).splitlines()) == 1
    assert "vocabulary.str" not in str(caught.value)


def test_classes_with_indices_are_taken_in_their_order(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, OWN), ["vocabulary.classes={1: car, 0: horse, 2: 'no'}"])
    assert config.resolve_vocabulary().classes == ("horse", "car", "no")


def test_null_where_it_is_no_value_is_told_with_the_default(tmp_path: Path) -> None:
    for override, message in (
        ("shard_rows=null", "'shard_rows': null is no value of it; the default is 32"),
        ("seeds.fine.alpha=null", "'seeds.fine.alpha': null is no value of it; the default is 0.6"),
        ("limits=null", "'limits': null is no value of it"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(written(tmp_path, OWN), [override])
    assert load_config(written(tmp_path, OWN), ["seeds.fine.box_threshold=null"]).seeds.fine.box_threshold is None


def test_a_section_of_another_kind_replaces_that_of_the_base(tmp_path: Path) -> None:
    path = written(tmp_path, "base: voc12\ndataset: {kind: toy, num_images: 4}\nclip: {factory: 'a:b'}\n")
    config = load_config(path)
    assert config.dataset.model_dump() == {"kind": "toy", "num_images": 4, "first_seed": 0, "only_images": None}
    assert (config.clip.factory, config.clip.model, config.clip.weights) == ("a:b", None, None)
    overridden = load_config("voc12", ["dataset.num_images=4", "dataset.kind=toy"])
    assert overridden.dataset == config.dataset
    assert load_config("voc12", ["dataset.kind=voc", "dataset.split=val"]).dataset.model_dump()["root"]


def test_presets_come_with_the_package(tmp_path: Path) -> None:
    assert {"voc12", "coco14", "demo", "own"} <= set(preset_names())
    with pytest.raises(ConfigError, match=r"voc21 is neither a run file, .* did you mean voc12\?"):
        load_config("voc21")
    with pytest.raises(ConfigError, match=r"presets are .*coco14"):
        load_config(written(tmp_path, "base: ../../etc/passwd"))
    with pytest.raises(ConfigError, match="'base' is a run file"):
        load_config(written(tmp_path, "base: {voc12: 1}"))
    both = load_config(written(tmp_path, "base: [demo, voc12]\nshard_rows: 5\n"))
    assert (both.run, both.shard_rows, both.propose.points_per_side) == ("runs/voc12", 5, 32)
    assert both.propose.predicted_iou_threshold == 0.86


def test_own_images_need_five_lines(tmp_path: Path) -> None:
    plain, own = load_config(written(tmp_path, OWN)), load_config("own")
    assert (plain.learn, plain.seeds, plain.propose) == (own.learn, own.seeds, own.propose)
