"""The figures of a GPU hour as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What says which row it is, in the order of the columns.
ABOUT = (
    "weights", "source", "backbone", "precision", "compiled", "cache", "replayed", "batch", "size", "scales",
    "crop_layers",
    "points_per_side", "replicas", "name",
)  # fmt: skip
_HIDDEN = {"what", "kernels", "repeats", "seconds"}


def markdown(result: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """One table for each kind of row.

    Args:
        result: what `gpu.json` holds.
        baseline: the same of an earlier hour; its median times get a column.
    """
    before = {_key(row): row.get("ms_median") for stage in (baseline or {}).get("stages", []) for row in stage["rows"]}
    lines = [f"# GPU hour, {result['date']}, commit {result['commit']}, {result['device']}", ""]
    for stage in result["stages"]:
        seconds = f", {stage['seconds']:.0f} s" if "seconds" in stage else ""
        lines += [f"## {stage['name']}: {stage['status']}{seconds}", ""]
        if stage.get("reason"):
            lines += [str(stage["reason"]), ""]
        for what in dict.fromkeys(row["what"] for row in stage["rows"]):
            rows = [row for row in stage["rows"] if row["what"] == what]
            if baseline:
                rows = [{**row, "ms_before": before.get(_key(row))} for row in rows]
            lines += [f"### {what}", "", *_table(rows), ""]
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> str:
    return repr([row["what"], *(row.get(name) for name in ABOUT)])


def _table(rows: list[dict[str, Any]]) -> Iterable[str]:
    keys = dict.fromkeys(key for row in rows for key in row if key not in _HIDDEN)
    columns = [*(name for name in ABOUT if name in keys), *(key for key in keys if key not in ABOUT)]
    columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(column)) for column in columns) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(own)}" for key, own in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(_cell(own) for own in value)
    return str(value)
