"""The one route that writes: corrections from the page become rows of `<run>/review/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fmwsss.core.errors import FmwsssError
from fmwsss.jobs.review.corrections import (
    ACCEPT,
    ADD,
    PAINT,
    REJECT,
    STRIKE,
    UNDO,
    ReviewError,
    append,
    counting,
    new_row,
)
from fmwsss.jobs.view.app import json_of
from fmwsss.jobs.view.opened_run import NotThere, OpenedRun

MOST_BYTES = 1 << 20
KNOWN_KEYS = {"image", "action", "class", "superpixel"}


class Editing:
    """Takes corrections of one person."""

    def __init__(self, opened: OpenedRun, author: str) -> None:
        self._opened, self._author = opened, author

    def routes(self) -> tuple[Route, ...]:
        """The routes that `fmwsss view --edit` has beside the others."""
        return (
            Route("/api/corrections", self._post, methods=["POST"]),
            Route("/api/author", self._who, methods=["GET"]),
        )

    def _who(self, _: Request) -> Response:
        return JSONResponse({"author": self._author})

    async def _post(self, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return JSONResponse({"error": "a correction is small"}, status_code=413)
        body = await request.body()
        try:
            return JSONResponse(await run_in_threadpool(self.correct, json_of(body)))
        except FmwsssError as error:
            status = 404 if isinstance(error, NotThere) else 400
            return JSONResponse({"error": str(error)}, status_code=status)

    def correct(self, told: Any) -> dict[str, Any]:
        """Writes one correction; what of the image counts now.

        Args:
            told: `image`, `action`, and for some actions `class` or `superpixel`.

        Raises:
            ReviewError: it is none that can be made.
            NotThere: no such image or superpixel.
        """
        if not isinstance(told, dict) or not told.keys() <= KNOWN_KEYS or not isinstance(told.get("image"), str):
            raise ReviewError(f"a correction is an object with the keys {', '.join(sorted(KNOWN_KEYS))}")
        image_id = told["image"]
        self._opened.part_of(image_id)
        row = new_row(image_id, told.get("action"), self._author, **self._values(image_id, told))  # type: ignore[arg-type]
        name = append(self._opened.run.folder, [row])
        self._opened.noted(name, [row])
        own = self._opened.standing(is_fresh=False).get(image_id)
        return {
            "id": row["correction_id"],
            "verdict": own.verdict if own else None,
            "corrections": own.num_corrections if own else 0,
            "version": row["made_at"].isoformat(),
        }

    def _values(self, image_id: str, told: Mapping[str, Any]) -> dict[str, Any]:
        action, name = told.get("action"), told.get("class")
        if action in (ACCEPT, REJECT):
            return {}
        if action == UNDO:
            return {"undoes": self._last(image_id)}
        if action not in (PAINT, ADD, STRIKE):
            raise ReviewError(f"there is no correction {str(action)[:40]!r}")
        if name is not None and not isinstance(name, str):
            raise ReviewError("a class is a name")
        if name:
            self._opened.vocabulary.index(name)
        elif action != PAINT:
            raise ReviewError(f"{action} needs a class")
        return {"class_name": name or None, **(self._region(image_id, told) if action == PAINT else {})}

    def _region(self, image_id: str, told: Mapping[str, Any]) -> dict[str, Any]:
        superpixels, index = self._opened.superpixels(image_id), told.get("superpixel")
        if not isinstance(index, int) or not 0 <= index < len(superpixels):
            raise NotThere(f"there is no superpixel {str(index)[:20]}: the image has {len(superpixels)}")
        return {
            "height_px": superpixels.height_px,
            "width_px": superpixels.width_px,
            "rle": superpixels.rle[index],
        }

    def _last(self, image_id: str) -> str:
        """The latest correction of this person on an image; of others', if there is none."""
        rows = [row for row in counting(self._opened.log.rows()) if row["image_id"] == image_id]
        own = [row for row in rows if row["author"] == self._author] or rows
        if not own:
            raise ReviewError(f"there is nothing to undo on image {image_id[:80]!r}")
        return own[-1]["correction_id"]
