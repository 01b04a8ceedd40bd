"""The actor class that tells which classes images show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from fmwsss.cluster.execution.rows import map_rows
from fmwsss.cluster.models.device import use_threads
from fmwsss.cluster.models.loaders import load_clip
from fmwsss.cluster.models.spec import ModelSpec
from fmwsss.cluster.replicas.pixels import pixels_of
from fmwsss.core.schemas import TAG_SCORES_PAYLOAD

if TYPE_CHECKING:
    from fmwsss.core.vocabulary import Vocabulary


class TagReplica:
    """A frozen CLIP with hand-made prompts, embedded once, that scores every class of the vocabulary.

    `method` is `tagclip` or `crops` (method M8.2); of the latter `max_side_px` is not read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        vocabulary: Vocabulary,
        templates: Sequence[str] | Literal["imagenet"],
        method: Literal["tagclip", "crops"],
        max_side_px: int | None,
        stage: str,
        num_threads: int,
    ) -> None:
        from fmwsss.core.prompts.learner import handmade_embeddings

        use_threads(num_threads)
        self.clip = load_clip(spec)
        self.foreground, self.background = handmade_embeddings(self.clip, vocabulary, templates)
        self.method, self.max_side_px, self.stage = method, max_side_px, stage

    def __call__(self, block: pa.Table) -> pa.Table:
        """DECODED_PAYLOAD rows in, TAG_SCORES_PAYLOAD rows out."""
        return map_rows(block, self._score, TAG_SCORES_PAYLOAD, self.stage)

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        from fmwsss.core.tags.crop_votes import vote
        from fmwsss.core.tags.tagclip import tag_scores

        texts = (self.foreground, self.background)
        if self.method == "crops":
            scores = vote(self.clip, pixels_of(row), *texts)
        else:
            scores = tag_scores(self.clip, pixels_of(row), *texts, self.max_side_px)
        return {"scores": scores}
