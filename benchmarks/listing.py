"""How long it takes to see what a dataset is, and in how much memory: a COCO json, a folder with sub-folders.

python -m benchmarks.listing --images 100000 --annotations 7 --json
python -m benchmarks.listing --files 20000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fmwsss.core.vocabularies import COCO14
from fmwsss.jobs.config.datasets import CocoData, UnlabelledData
from fmwsss.jobs.images import digest, record
from fmwsss.jobs.images.readers.registry import read_dataset

NUM_POINTS = 24  # of an outline; COCO's have about as many
FILES_OF_A_FOLDER = 50


def write_coco(root: Path, num_images: int, num_annotations: int) -> None:
    """A json of `instances` of so many images, whose files are there and empty."""
    rng = random.Random(0)
    (root / "images").mkdir()
    with (root / "instances.json").open("w") as file:
        images = []
        for number in range(1, num_images + 1):
            name = f"{number:012d}.jpg"
            (root / "images" / name).touch()
            images.append({"id": number, "file_name": name, "height": 480, "width": 640, "license": 1})
        categories = [{"id": index, "name": name} for index, name in enumerate(COCO14.classes, start=1)]
        file.write(json.dumps({"info": {}, "images": images, "categories": categories}).removesuffix("}"))
        file.write(', "annotations": [\n')
        order = [number for number in range(1, num_images + 1) for _ in range(num_annotations)]
        rng.shuffle(order)
        for index, number in enumerate(order):
            outline = [round(rng.uniform(0, 640), 2) for _ in range(2 * NUM_POINTS)]
            told = {"id": index, "image_id": number, "category_id": rng.randint(1, 80), "iscrowd": 0, "area": 1.5,
                    "bbox": [1.0, 2.0, 3.0, 4.0], "segmentation": [outline]}  # fmt: skip
            file.write((",\n" if index else "") + json.dumps(told))
        file.write("]}")


def write_folder(root: Path, num_files: int) -> None:
    """A folder of empty files in sub-folders."""
    for number in range(num_files):
        folder = root / "images" / f"f{number // FILES_OF_A_FOLDER:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IMG_{number}.jpg").touch()


def look(root: Path, kind: str) -> dict[str, float]:
    """Reads a dataset as a run does at its start; seconds, and what the process had in memory at most."""
    began_s = time.monotonic()
    images = str(root / "images")
    if kind == "coco":
        listing = read_dataset(
            CocoData(kind="coco", images=images, annotations=f"{root}/instances.json"), COCO14.classes
        )
    else:
        listing = read_dataset(UnlabelledData(kind="unlabelled", images=images))
    listed_s = time.monotonic() - began_s
    digest.of_listing(listing, COCO14.classes)
    record.rows_of(listing.sources, 32)
    return {
        "images": len(listing.sources),
        "list_s": round(listed_s, 2),
        "list_and_compare_s": round(time.monotonic() - began_s, 2),
        "cpu_s": round(time.process_time(), 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="images of a COCO json")
    parser.add_argument("--annotations", type=int, default=7, help="of each image")
    parser.add_argument("--files", type=int, help="files of a folder with sub-folders")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(Path(options.look[0]), options.look[1])))
        return
    results = {}
    for kind, count in (("coco", options.images), ("folder", options.files)):
        if not count:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if kind == "coco":
                write_coco(root, count, options.annotations)
            else:
                write_folder(root, count)
            # In a process of its own, whose memory is that of reading alone.
            command = [sys.executable, "-m", "benchmarks.listing", "--look", folder, kind]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = (root / "instances.json").stat().st_size / 2**20 if kind == "coco" else 0.0
            results[kind] = {**told, **({"json_mib": round(size)} if size else {})}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for kind, told in results.items():
        print(f"{kind}: {', '.join(f'{key} {value}' for key, value in told.items())}")


if __name__ == "__main__":
    main()
