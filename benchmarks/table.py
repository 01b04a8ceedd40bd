"""What every benchmark prints and writes: one table, and with `--json FILE` the same figures for programs."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any


def machine(device: str | None = None) -> str:
    """Where the figures were measured, in a few words; on the GPU if there is one, unless `device` says otherwise."""
    import torch  # only here: workers of benchmarks that import this module need none

    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of {platform.machine()}"


def show(rows: list[dict[str, Any]], title: str, device: str | None = None) -> None:
    """Prints rows of equal keys as a table."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    print(f"{title} ({machine(device)}, torch {importlib.metadata.version('torch')}, {date.today()})")
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Writes the figures if a file was asked for."""
    if path:
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    return "-" if value is None else str(value)
