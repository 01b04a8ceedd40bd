"""What is no file, or not ours to read, is a fault of that file: nothing hangs, and nothing fills the memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import FileError, Folder, RefusedFile, read_url
from fmwsss.core.vocabularies import custom_vocabulary
from fmwsss.jobs.images.image_rows import Reading, row_or_failure


def test_a_pipe_and_an_endless_device_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("/dev/zero", tmp_path / "zeros.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zeros.jpg"):
        with pytest.raises(RefusedFile, match="it is no file but a pipe, a socket or a device"):
            read_url(f"{tmp_path}/{name}")
    for name in ("loop.jpg", "folder.jpg"):
        with pytest.raises(RefusedFile, match=f"can't read .*{name}"):
            read_url(f"{tmp_path}/{name}", 100)


def test_a_file_that_does_not_tell_its_size_is_bounded() -> None:
    with pytest.raises(FileError, match="has more than the 10 bytes"):
        Folder("/proc/self").read("status", max_bytes=10)


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(40, "loop"), IsADirectoryError(21, "x")])
def test_one_file_that_cannot_be_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object) -> bytes:
        raise error

    monkeypatch.setattr("fmwsss.cluster.storage.folder.read_local", refuse)
    source = {"image_id": "a", "image_url": f"{tmp_path}/a.jpg", "classes": ["cat"], "truth_url": None}
    row = row_or_failure({**source, "annotation_url": None, "problem": None}, Reading(custom_vocabulary(["cat"])))
    assert row["error_type"] == "RefusedFile"
    assert "a.jpg" in row["message"]


def test_parts_of_files_are_read(tmp_path: Path, s3_url: str) -> None:
    for folder in (Folder(str(tmp_path)), Folder(s3_url.replace("s3://", "S3://")).child(tmp_path.name)):
        folder.write("a::b.bin", bytes(range(100)))
        assert folder.read_range("a::b.bin", 10, 5) == bytes(range(10, 15))
        assert folder.read_range("a::b.bin", 98, 50) == b"bc"
        with folder.open("a::b.bin") as file:
            file.seek(50)
            assert file.read(2) == bytes([50, 51])
        before = folder.tokens()
        folder.write("a::b.bin", b"other")
        assert before.keys() == {"a::b.bin"} != folder.tokens()
        assert before != folder.tokens()
