"""The second stage: segmenters that are trained on seeds (docs/method.md, M7)."""

from typing import TYPE_CHECKING

from fmwsss.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from fmwsss.core.segmenter.base import Segmenter as Segmenter

__getattr__ = lazy_exports(__name__, {"Segmenter": "base"})
