"""Predictions as the archive that the evaluation server of PASCAL VOC takes."""

from __future__ import annotations

import io
import tarfile

import ray

from fmwsss.cluster.storage.ledger import Run
from fmwsss.jobs.run_layout import PREDICTED, REFINED

VOC_ARCHIVE = "voc_results.tar.gz"


VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"  # of the server: trained on more than its own masks


def pack_for_voc(run: Run) -> str:
    """All predictions of a run, refined if they are, as the archive that the server of PASCAL VOC takes; its URL.

    A task packs and writes it: no picture passes through the driver.
    """
    stage = REFINED if run.receipt(REFINED) else PREDICTED
    ray.get(_write_archive.options(num_cpus=0.5).remote(run, stage))
    return f"{run.folder.url}/{VOC_ARCHIVE}"


@ray.remote
def _write_archive(run: Run, stage: str) -> None:
    receipt = run.receipt(stage)
    assert receipt is not None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for part in receipt.parts:
            for row in run.read_part(stage, part, columns=["image_id", "labels"]).to_pylist():
                entry = tarfile.TarInfo(f"{VOC_FOLDER}/{row['image_id']}.png")
                entry.size = len(row["labels"])
                archive.addfile(entry, io.BytesIO(row["labels"]))
    run.folder.write(VOC_ARCHIVE, buffer.getvalue())
