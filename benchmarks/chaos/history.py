"""What must hold of a run when it has ended, whatever happened to it."""

from __future__ import annotations

from collections import Counter

from fmwsss.cluster.storage.folder import Folder
from fmwsss.cluster.storage.ledger import Run
from tests.support.fault_injection import outputs, rows


class Undisturbed:
    """Rows and bytes of a run that nobody disturbed; those that are disturbed must end with the same."""

    def __init__(self, run: str) -> None:
        self.rows, self.bytes = rows(run), outputs(run)

    def compare(self, run: str, found: Counter[str]) -> list[str]:
        """Adds what a run has lost, has twice, or has in other bytes; the names of the files that differ."""
        mine, files = rows(run), outputs(run)
        for stage, expected in self.rows.items():
            ids = Counter(mine.get(stage, []))
            found["lost"] += len(set(expected) - ids.keys())
            found["twice"] += sum(count - 1 for count in ids.values())
        differ = sorted(name for name in files.keys() | self.bytes if files.get(name) != self.bytes.get(name))
        found["different"] += len(differ)
        return differ


def strangers(run: str) -> list[str]:
    """Files of stages that no receipt tells of, or that are not what it tells; stages without one."""
    found, ledger = [], Run(Folder(run))
    for stage in ledger.stages():
        receipt, folder = ledger.receipt(stage), ledger.folder.child(stage)
        if receipt is None:
            found.append(stage)
            continue
        told = {file.name: file for file in receipt.files}
        there = folder.list()
        found += [f"{stage}/{name}" for name in there if name.startswith("part-") and name not in told]
        whole = {name for name, file in told.items() if name in there and file.is_whole(folder.read(name))}
        found += [f"{stage}/{name}" for name in told if name not in whole]
    return found
