"""One stage, in a process of its own: `python -m benchmarks.gpu_stages NAME SETTINGS_JSON`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu_stages.measure import Hour

if __name__ == "__main__":
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    paths = {key: Path(settings[key]) if settings[key] else None for key in ("images", "rows", "traces")}
    importlib.import_module(f"benchmarks.gpu_stages.{name}").run(Hour(**{**settings, **paths}))
