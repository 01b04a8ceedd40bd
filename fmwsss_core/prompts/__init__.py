"""Learned prompts and their losses (docs/method.md, M3 and M4)."""

from typing import TYPE_CHECKING

from fmwsss.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from fmwsss.core.prompts.learner import PromptLearner as PromptLearner
    from fmwsss.core.prompts.learner import handmade_embeddings as handmade_embeddings

__getattr__ = lazy_exports(__name__, {"PromptLearner": "learner", "handmade_embeddings": "learner"})
