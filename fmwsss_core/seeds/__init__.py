"""Segmentation seeds from class maps and superpixels (docs/method.md, M5.2 and M5.4)."""

from typing import TYPE_CHECKING

from fmwsss.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from fmwsss.core.seeds.baselines import crf_seed as crf_seed
    from fmwsss.core.seeds.baselines import threshold_seed as threshold_seed
    from fmwsss.core.seeds.baselines import vote as vote
    from fmwsss.core.seeds.baselines import voting_seed as voting_seed
    from fmwsss.core.seeds.sams import Seed as Seed
    from fmwsss.core.seeds.sams import seed_image as seed_image

__getattr__ = lazy_exports(
    __name__,
    {
        "Seed": "sams",
        "seed_image": "sams",
        "crf_seed": "baselines",
        "threshold_seed": "baselines",
        "voting_seed": "baselines",
        "vote": "baselines",
    },
)
