"""Class maps of images from a CLIP and text embeddings (docs/method.md, M2)."""

from typing import TYPE_CHECKING

from fmwsss.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from fmwsss.core.class_maps.attention_affinity import refine as refine
    from fmwsss.core.class_maps.clip_maps import map_classes as map_classes
    from fmwsss.core.class_maps.clip_maps import patch_grid as patch_grid
    from fmwsss.core.class_maps.maps import ClassMaps as ClassMaps

__getattr__ = lazy_exports(
    __name__,
    {"ClassMaps": "maps", "map_classes": "clip_maps", "patch_grid": "clip_maps", "refine": "attention_affinity"},
)
