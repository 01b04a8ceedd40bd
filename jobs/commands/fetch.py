"""`fmwsss fetch [NAME...|RUN_FILE]`: weights into this machine's cache, so that a run finds them without internet."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from fmwsss.cluster.models import known_weights
from fmwsss.cluster.models.known_weights import Role, named
from fmwsss.cluster.models.spec import ModelError, ModelSpec
from fmwsss.cluster.models.weights import Place, cached, find_place, is_whole, place_of, weights_cache, weights_file
from fmwsss.jobs.config.load import load_config

NUM_TRIES = 6  # in a row that bring nothing new: half a minute of waiting in all


def run(names: list[str]) -> None:
    """Fetches each file that is not there yet; goes on with one that an earlier call did not finish.

    Args:
        names: known names (`vit_h`, `ViT-B-16-quickgelu/openai`) and run files; none lists the known ones.

    Raises:
        ModelError: an unknown name, or a file that cannot be fetched.
        ConfigError: a run file that cannot be read.
    """
    if not names:
        return _list()
    for place in [place for name in names for place in _places(name)]:
        if is_whole(place):
            print(f"{place.name}: is here, {place.path}")
        else:
            print(f"{place.name}: {_fetch(place)}")


def _places(name: str) -> Iterator[Place]:
    if name.endswith((".yaml", ".yml")):
        config = load_config(name)
        specs: list[tuple[Role | None, ModelSpec]] = [("clip", config.clip.spec()), ("sam", config.sam.spec())]
        own = config.segmenter
        if own and own.weights and own.weights_sha256:
            specs.append((None, ModelSpec(weights=own.weights, sha256=own.weights_sha256)))
        for role, spec in specs:
            if place := find_place(spec, role):
                yield place
            elif spec.factory or spec.model == "toy":
                print(f"{role}: {spec.factory or 'the toy model'} brings its own weights")
            else:
                print(f"{role}: is here, {weights_file(spec, role)}")
        return
    known = named(name)
    if known is None:
        near = difflib.get_close_matches(name, [own.name for own in known_weights.KNOWN_WEIGHTS], n=1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise ModelError(f"there are no weights called {name}{hint} `fmwsss fetch` lists those that it knows")
    yield place_of(known)


def _fetch(place: Place) -> str:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(place.name, total=None)

        def report(num_bytes: int, num_bytes_in_all: int | None) -> None:
            bar.update(task, completed=num_bytes, total=num_bytes_in_all)

        path = cached(place, None, report, NUM_TRIES)
    return f"fetched, {path.stat().st_size / 2**20:.1f} MiB, {path}"


def _list() -> None:
    table = Table("name", "of", "address", "here", title=f"weights that have a name (kept in {weights_cache()})")
    for known in known_weights.KNOWN_WEIGHTS:
        table.add_row(known.name, known.role, known.url, "yes" if is_whole(place_of(known)) else "")
    Console(width=None if Console().is_terminal else 200).print(table)
