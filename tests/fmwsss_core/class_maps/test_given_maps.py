"""Maps from the files of other programs, and what is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmwsss.core.class_maps.given_maps import given_maps, read_arrays
from fmwsss.core.class_maps.maps import ClassMaps, min_max, mixed
from fmwsss.core.vocabulary import Vocabulary

TINY = Vocabulary("tiny", ("cat", "dog", "train"), ("cat", "dog", "train"), ())
MAPS = np.arange(24, dtype=np.float16).reshape(2, 3, 4)


def npy(content: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, content, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("maps_key", ["attn_highres", "maps", "high_res"])
def test_a_dictionary_as_clip_es_saves_it(maps_key: str):
    found = read_arrays(npy({"keys": np.array([2, 0]), maps_key: MAPS}))
    maps = given_maps(found, ["cat", "train"], TINY)
    expected = min_max(MAPS[[1, 0]].astype(np.float32))
    np.testing.assert_array_equal(maps.cam, expected)
    assert maps.cam.dtype == np.float32
    assert (maps.cam.min(), maps.cam.max()) == (0, 1)
    one = given_maps(found, ["train"], TINY)
    np.testing.assert_array_equal(one.cam, expected[1:])


def test_an_archive_with_names_or_with_numbers_from_1():
    for keys, first_key in ((np.array(["train", "cat"]), 0), (np.array([3, 1]), 1)):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, keys=keys, maps=MAPS)
        maps = given_maps(read_arrays(buffer.getvalue()), ["cat"], TINY, first_key)
        np.testing.assert_array_equal(maps.cam, min_max(MAPS[1:].astype(np.float32)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"keys": [0], "other": MAPS[:1]}, "attn_highres"),
        ({"maps": MAPS}, "`keys`"),
        ({"keys": [0], "maps": MAPS}, "1 keys"),
        ({"keys": [0, 2], "maps": MAPS}, "no map of class 'dog'"),
        ({"keys": [0, 1], "maps": np.where(MAPS == 20, np.nan, MAPS)}, "not finite"),
        ({"keys": ["cat", "cow"], "maps": MAPS}, "'cow' is not a class"),
    ],
)
def test_what_does_not_fit_is_told(content: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        given_maps(content, ["dog"], TINY)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_code_in_a_file_of_maps_is_not_run(tmp_path: Path):
    path = tmp_path / "harmed"
    for data in (npy({"keys": Harm(path)}), npy(Harm(path)), pickle.dumps(Harm(path)), b"", b"PK", npy(MAPS)):
        with pytest.raises(ValueError):
            read_arrays(data)
    assert not path.exists()


def test_a_mixture_is_the_weighted_mean_on_the_finest_grid():
    coarse = ClassMaps(np.array([[[0.0, 1.0]]], np.float32), None)
    fine = ClassMaps(
        np.array([[[0.0, 0.0, 1.0, 0.0]]], np.float32),
        np.array([[[1.0, 0.0, 0.0, 0.0]]], np.float32),
        np.array([[1.0, 1.0, 0.0, 1.0]], np.float32),
    )
    found = mixed([coarse, fine], [1.0, 3.0])
    enlarged = np.array([0.0, 0.25, 0.75, 1.0])  # half-pixel centres
    for own, other in ((found.cam, fine.cam), (found.refined_cam, fine.refined_cam)):
        mean = (enlarged + 3 * other[0, 0]) / 4 if other is not None else None
        assert own is not None
        assert mean is not None
        np.testing.assert_allclose(own[0, 0], (mean - mean.min()) / (mean.max() - mean.min()), atol=1e-6)
    assert found.background is not None
    np.testing.assert_array_equal(found.background, fine.background)
    assert mixed([coarse], [2.0]) is coarse
