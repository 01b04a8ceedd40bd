"""Superpixels that runs share are found again by later releases."""

from __future__ import annotations

from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.jobs.superpixels.shared_cache import SharedSuperpixels

# A new setting must leave the folder of the old ones where it is: SAM is what a run pays for.
FOLDER = "af5617195b045cfefaabb3a077d684b7"


def test_the_folder_of_the_default_settings_stays_where_it_is() -> None:
    def name(settings: ProposalSettings) -> str:
        return SharedSuperpixels.of("/cache", 64 * "a", settings).folder.url.rpartition("/")[2]

    assert name(ProposalSettings()) == FOLDER
    assert name(ProposalSettings(points_per_batch=7)) == FOLDER
    assert name(ProposalSettings(points_per_side=16)) != FOLDER
