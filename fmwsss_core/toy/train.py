"""Trains the toy world's CLIP or SAM: `python -m fmwsss.core.toy.train clip|sam --minutes 15 --out DIR`.

Every scene is drawn once and never again; tests and the demo use scenes that neither has seen
(`FIRST_TRAINING_SEED`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fmwsss.core.toy.models import save_model, toy_clip, toy_sam
from fmwsss.core.toy.train_clip import train_clip
from fmwsss.core.toy.train_sam import train_sam

FIRST_TRAINING_SEED = 1_000_000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("clip", "sam"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--go-on", action="store_true", help="start from the weights in the package")
    parser.add_argument("--seed", type=int, default=FIRST_TRAINING_SEED, help="of the first scene; new ones to go on")
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning, at its highest")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    schedule = (arguments.seed, arguments.rate)
    if arguments.model == "clip":
        trained, rows = train_clip(arguments.minutes, 12, toy_clip() if arguments.go_on else None, *schedule)
        save_model(trained, arguments.out / "clip.safetensors", rows)
    else:
        save_model(
            train_sam(arguments.minutes, 4, toy_sam() if arguments.go_on else None, *schedule),
            arguments.out / "sam.safetensors",
        )
