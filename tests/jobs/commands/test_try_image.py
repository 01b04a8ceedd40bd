"""`fmwsss try` on a scene, with hand-made prompts: no run folder, no Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fmwsss.core.toy.world import draw_scene

ROOT = Path(__file__).parents[3]


def test_one_png_and_no_ray(tmp_path: Path):
    scene = draw_scene(5)
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    arguments = ["try", f"{tmp_path}/scene.png", "--labels", ",".join(scene.classes), "--config", "configs/demo.yaml",
                 "--output", f"{tmp_path}/out.png", f"run={tmp_path}/none", "propose.points_per_side=6"]  # fmt: skip
    program = (
        f"import sys\nfrom fmwsss.jobs.cli import main\ntry:\n    main({arguments})\n"
        "except SystemExit as end:\n    assert not end.code\nassert 'ray' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "hand-made prompts" in result.stdout
    assert f"pixels: {scene.classes[0]} " in result.stdout
    sheet = Image.open(tmp_path / "out.png")
    assert sheet.format == "PNG"
    assert sheet.width > 4 * 400
    assert len(set(sheet.resize((60, 40)).convert("RGB").get_flattened_data())) > 100
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--labels", "fihs"], ["'fihs' is not a class", "'fish'"]),
        (
            ["--labels", "fish", "--output", "nowhere/seed.png"],
            ["nowhere/seed.png cannot be written: no folder"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_told_before_torch_is_imported(tmp_path: Path, more: list[str], words: list[str]):
    Image.new("RGB", (40, 40)).save(tmp_path / "grey.png")
    arguments = [str(tmp_path / "grey.png"), *more, "--config", "configs/demo.yaml"]
    without_torch = "import sys; sys.modules['torch'] = None; from fmwsss.jobs.cli import main; main()"
    command = [sys.executable, "-c", without_torch, "try", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("fmwsss:")]
    assert all(word in line for word in words)
