"""What the server answers: pages from the package, figures as JSON, pictures. Only `corrections` writes."""

from __future__ import annotations

import functools
import importlib.resources
import json
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fmwsss.cluster.storage.json_files import read_json
from fmwsss.cluster.storage.redaction import redacted
from fmwsss.core.errors import FmwsssError, InputError
from fmwsss.jobs.run_layout import METRICS_FILE, PREDICTED, REFINED
from fmwsss.jobs.view import layers
from fmwsss.jobs.view.comparison import Comparison
from fmwsss.jobs.view.opened_run import NotThere, OpenedRun, colour_of, plain, verdicts
from fmwsss.jobs.view.run_index import NUMBERS
from fmwsss.jobs.view.selection import Selection

PAGE_IMAGES, MOST_PAGE_IMAGES = 48, 200
NUM_BINS = 20
LAST_LAYER = {REFINED: "refined", PREDICTED: "prediction", "seeds/coarse": "coarse"}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
PICTURES_KEPT = "private, max-age=3600"  # their addresses change with their content


class ViewApp:
    """The routes, around one run and perhaps another one."""

    def __init__(self, opened: OpenedRun, against: OpenedRun | None = None, is_editable: bool = False) -> None:
        self.opened, self._is_editable = opened, is_editable
        self._started = secrets.token_hex(4)
        self.comparison = Comparison(opened, against) if against else None
        self._files = static_files()
        self._selected: dict[Any, np.ndarray] = {}

    def starlette(self, more: tuple[Route, ...] = ()) -> Starlette:
        """The application, without its guard.

        Args:
            more: routes that write.
        """
        pages = [Route(path, self._page) for path in ("/", "/image")]
        own = {
            "/api/run": self.about,
            "/api/images": self.images,
            "/api/list": self.list,
            "/api/image": self.image,
            "/api/at": self.at,
            "/thumbnail": self.thumbnail,
            "/layer": self.layer,
            "/superpixel": self.superpixel,
        }
        routes = [Route(path, told_errors(answer)) for path, answer in own.items()]
        return Starlette(routes=[*pages, *routes, Route("/static/{name}", self._static), *more])

    def _page(self, _: Request) -> Response:
        return Response(self._files["index.html"], media_type="text/html")

    def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            return PlainTextResponse("there is no such file", status_code=404)
        return Response(self._files[name], media_type=KINDS[name.rpartition(".")[2]])

    def about(self, _: Request) -> Response:
        """The run as a whole."""
        self.opened.look_again()
        opened, snapshot = self.opened, self.opened.index.snapshot
        manifest = opened.run.manifest() or {}
        reports = opened.run.folder.child("reports")
        metrics = read_json(reports, METRICS_FILE) if reports.exists(METRICS_FILE) else {}
        rows = {row["name"]: row for row in metrics.get("rows", [])}
        return JSONResponse(
            {
                "name": opened.name,
                "started": self._started + opened.stamp,
                "editable": self._is_editable,
                "url": redacted(opened.run.folder.url),
                "base": opened.index.base,
                "against": redacted(self.comparison.other.run.folder.url) if self.comparison else None,
                "compared": self.comparison.progress() if self.comparison else None,
                "images": len(snapshot),
                "indexed_parts": snapshot.num_parts,
                "parts": snapshot.all_parts,
                "error": opened.index.error,
                "failed": int(snapshot.is_failed.sum()),
                "numbers": [name for name in NUMBERS if snapshot.has(name)],
                "histograms": _histograms(snapshot.numbers),
                "classes": self._classes(rows.get("fine", {}).get("per_class", {})),
                "rows": [{key: row.get(key) for key in ("name", "miou", "images")} for row in metrics.get("rows", [])],
                "versions": manifest.get("versions", {}),
            }
        )

    def _classes(self, iou: dict[str, float]) -> list[dict[str, Any]]:
        snapshot, names = self.opened.index.snapshot, self.opened.vocabulary.classes
        count = np.bincount(snapshot.labels[1], minlength=1 + len(names))
        missing = np.bincount(snapshot.missing[1], minlength=1 + len(names))
        own = np.nan_to_num(snapshot.numbers["confidence"][snapshot.labels[0]])
        sums = np.bincount(snapshot.labels[1], weights=own, minlength=1 + len(names))
        return [
            {
                "name": name,
                "index": index,
                "colour": colour_of(index),
                "images": int(count[index]),
                "missing": int(missing[index]),
                "confidence": plain(sums[index] / count[index]) if count[index] else None,
                "iou": plain(iou[name]) if name in iou else None,
            }
            for index, name in enumerate(names, start=1)
        ]

    def images(self, request: Request) -> Response:
        """One page of the images that the query selects."""
        query = request.query_params
        rows = self._rows(request)
        size = min(max(1, _whole(query.get("size"), PAGE_IMAGES)), MOST_PAGE_IMAGES)
        pages = max(1, -(-len(rows) // size))
        page = min(max(1, _whole(query.get("page"), 1)), pages)
        shown = rows[(page - 1) * size : page * size]
        return JSONResponse(
            {
                "total": len(rows),
                "page": page,
                "pages": pages,
                "size": size,
                "is_whole": self.opened.index.snapshot.is_whole,
                "images": [self._card(int(row)) for row in shown],
            }
        )

    def list(self, request: Request) -> Response:
        """The ids of all images that the query selects, a line each."""
        ids = self.opened.index.snapshot.ids
        text = "".join(f"{ids[int(row)].as_py()}\n" for row in self._rows(request))
        return PlainTextResponse(text, headers={"content-disposition": 'attachment; filename="images.txt"'})

    def image(self, request: Request) -> Response:
        """One image, and its neighbours in the selection.

        Raises:
            NotThere: there is no such image.
        """
        image_id = request.query_params.get("id", "")
        row = self.opened.index.row_of(image_id)
        if row is None:
            raise NotThere(f"there is no image {image_id[:80]!r} in this run")
        rows = self._rows(request)
        (places,) = np.nonzero(rows == row)
        place = int(places[0]) if len(places) else None
        ids = self.opened.index.snapshot.ids

        def at(index: int) -> str | None:
            return ids[int(rows[index])].as_py() if 0 <= index < len(rows) else None

        is_there = self.opened.row("images", image_id, "height_px") if self.opened.index.part_of(image_id) else None
        size = self.opened.size_px(image_id) if is_there else (0, 0)
        shown = self.opened.layers_of(image_id) if is_there else []
        if self.comparison and is_there and self.comparison.other.index.part_of(image_id):
            shown.append("against")
        return JSONResponse(
            {
                **self._card(row),
                "is_there": bool(is_there),
                "height_px": size[0],
                "width_px": size[1],
                "layers": shown,
                "failures": self.opened.index.failures.get(image_id, []),
                "total": len(rows),
                "place": place,
                "previous": at(place - 1) if place is not None else None,
                "next": at(place + 1) if place is not None else at(0),
            }
        )

    def at(self, request: Request) -> Response:
        """The superpixels at a pixel, or all of them, small ones first, with the class that each was given.

        Raises:
            InputError: there is no such pixel.
        """
        query = request.query_params
        image_id = query.get("id", "")
        superpixels = self.opened.superpixels(image_id)
        seed = self.opened.row("seeds/fine", image_id, "superpixel_class") or {}
        classes = seed.get("superpixel_class") or []
        area = superpixels.area_px()
        found = np.argsort(area, kind="stable")
        if "x" in query:
            x, y = _whole(query.get("x"), -1), _whole(query.get("y"), -1)
            if not (0 <= x < superpixels.width_px and 0 <= y < superpixels.height_px):
                raise InputError(f"there is no pixel ({x}, {y}) in an image of {superpixels.width_px} x "
                                 f"{superpixels.height_px}")  # fmt: skip
            found = [index for index in found if superpixels.mask(int(index))[y, x]]
        return JSONResponse(
            {
                "superpixels": [
                    {
                        "index": int(index),
                        "level": int(superpixels.level[index]),
                        "area_px": int(area[index]),
                        "class": int(classes[index]) if index < len(classes) else None,
                    }
                    for index in found
                ]
            }
        )

    def thumbnail(self, request: Request) -> Response:
        """A small picture of an image."""
        opened, layer = self._side(request, "fine")
        return _picture(opened.thumbnail(layer, request.query_params.get("id", "")), "image/webp")

    def layer(self, request: Request) -> Response:
        """A layer of an image at its size."""
        opened, layer = self._side(request, "image")
        data = opened.picture(layer, request.query_params.get("id", ""))
        return _picture(data, "image/webp" if layer == "image" else "image/png")

    def superpixel(self, request: Request) -> Response:
        """One superpixel as a picture.

        Raises:
            NotThere: there is no such superpixel.
        """
        query = request.query_params
        superpixels = self.opened.superpixels(query.get("id", ""))
        index = _whole(query.get("index"), -1)
        if not 0 <= index < len(superpixels):
            raise NotThere(f"there is no superpixel {index}: the image has {len(superpixels)}")
        return _picture(layers.mask_png(superpixels.mask(index)), "image/png")

    def _side(self, request: Request, default: str) -> tuple[OpenedRun, str]:
        layer = request.query_params.get("layer", default)
        if layer == "against":
            if self.comparison is None:
                raise NotThere("there is no other run: start with --against OTHER")
            return self.comparison.other, "fine"
        # A run of predictions has no seeds: what was predicted is shown in their place.
        return self.opened, LAST_LAYER.get(self.opened.index.base, layer) if layer == "fine" else layer

    def _rows(self, request: Request) -> np.ndarray:
        """The rows of the selection; that of the last request is kept, since pages follow pages."""
        selection = Selection.from_query(request.query_params)
        snapshot, own = self.opened.index.snapshot, self.opened.standing()
        told = verdicts(own) if selection.verdict else {}
        key = (repr(selection), id(snapshot), repr(sorted(told.items())) if told else "")
        if key not in self._selected:
            self._selected = {key: selection.rows(snapshot, self.opened.vocabulary, told)}
        return self._selected.get(key, np.zeros(0, np.int64))

    def _card(self, row: int) -> dict[str, Any]:
        snapshot, names = self.opened.index.snapshot, self.opened.vocabulary.classes
        image_id = snapshot.ids[row].as_py()
        own = self.opened.standing(is_fresh=False).get(image_id)
        labels = _of_row(snapshot.labels, row, names)
        card: dict[str, Any] = {
            "id": image_id,
            "classes": own.classes(labels) if own else labels,
            "missing": _of_row(snapshot.missing, row, names),
            "failed": bool(snapshot.is_failed[row]),
            "verdict": own.verdict if own else None,
            "corrections": own.num_corrections if own else 0,
            "version": own.made_at.isoformat() if own and own.made_at else "",
        }
        return card | {name: plain(values[row]) for name, values in snapshot.numbers.items()}


def told_errors(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """The same function of a request, whose errors of users are JSON."""

    @functools.wraps(answer)
    def told(request: Request) -> Response:
        try:
            return answer(request)
        except FmwsssError as error:
            status = 404 if isinstance(error, NotThere) else 400
            return JSONResponse({"error": redacted(str(error))}, status_code=status)

    return told


def static_files() -> dict[str, bytes]:
    """The files of the front end by name: these are served, and no others."""
    folder = importlib.resources.files("fmwsss.jobs.view") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}


def json_of(body: bytes) -> Any:
    """JSON that a page sent.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(body)
    except ValueError:
        raise InputError("what was sent is no JSON") from None


def _histograms(numbers: dict[str, np.ndarray]) -> dict[str, list[int]]:
    found = {name: values[np.isfinite(values)] for name, values in numbers.items()}
    return {name: np.histogram(values, NUM_BINS, (0, 1))[0].tolist() for name, values in found.items() if values.size}


def _of_row(pairs: tuple[np.ndarray, np.ndarray], row: int, names: tuple[str, ...]) -> list[str]:
    rows, classes = pairs
    begin, end = np.searchsorted(rows, [row, row + 1])
    return [names[index - 1] for index in classes[begin:end]]


def _whole(text: str | None, default: int) -> int:
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{text[:40]!r} is no whole number") from None


def _picture(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"cache-control": PICTURES_KEPT})
