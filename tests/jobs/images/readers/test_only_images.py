"""`dataset.only_images`: a list of ids narrows any dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmwsss.core.errors import InputError
from fmwsss.jobs.config.datasets import ToyData
from fmwsss.jobs.images.readers.base import DatasetError
from fmwsss.jobs.images.readers.registry import read_dataset


def narrowed(tmp_path: Path, text: bytes) -> list[str]:
    (tmp_path / "list.txt").write_bytes(text)
    data = ToyData(kind="toy", num_images=5, only_images=str(tmp_path / "list.txt"))
    return [source.image_id for source in read_dataset(data).sources]


def test_only_listed_images_are_taken_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    everything = [source.image_id for source in read_dataset(ToyData(kind="toy", num_images=5)).sources]
    text = f"\ufeff{everything[3]}\r\n\r\n  {everything[1]} \nnot-there\n".encode()
    assert narrowed(tmp_path, text) == [everything[1], everything[3]]


def test_a_list_without_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none of the 1 ids of .*list.txt is one of the 5 images"):
        narrowed(tmp_path, b"not-there\n")
    with pytest.raises(InputError, match=r"list.txt lists no image"):
        narrowed(tmp_path, b" \n")
    with pytest.raises(InputError, match=r"missing\.txt"):
        read_dataset(ToyData(kind="toy", num_images=5, only_images=str(tmp_path / "missing.txt")))
