"""Quasi-superpixels from SAM (docs/method.md, M5.1)."""

from typing import TYPE_CHECKING

from fmwsss.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from fmwsss.core.superpixels.masks import Superpixels as Superpixels
    from fmwsss.core.superpixels.proposal_settings import ProposalSettings as ProposalSettings
    from fmwsss.core.superpixels.sam import detect as detect
    from fmwsss.core.superpixels.sam import propose as propose

__getattr__ = lazy_exports(
    __name__, {"Superpixels": "masks", "ProposalSettings": "proposal_settings", "propose": "sam", "detect": "sam"}
)
