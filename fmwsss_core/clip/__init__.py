"""A frozen CLIP as a localiser (docs/method.md, M2)."""

from typing import TYPE_CHECKING

from fmwsss.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from fmwsss.core.clip.frozen_clip import FrozenClip as FrozenClip
    from fmwsss.core.clip.frozen_clip import ImageFeatures as ImageFeatures

__getattr__ = lazy_exports(__name__, {"FrozenClip": "frozen_clip", "ImageFeatures": "frozen_clip"})
