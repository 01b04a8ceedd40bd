"""Superpixels that runs share are found again by later releases."""

from __future__ import annotations

from dataclasses import replace

from fmwsss.core.superpixels.proposal_settings import ProposalSettings
from fmwsss.jobs.superpixels.shared_cache import SharedSuperpixels

# What the release before `fill_points_per_side` called the folder of the default settings and of these weights.
FOLDER_BEFORE = "af5617195b045cfefaabb3a077d684b7"


def test_a_new_option_at_its_default_leaves_the_folder_where_it_was() -> None:
    def name(settings: ProposalSettings) -> str:
        return SharedSuperpixels.of("/cache", 64 * "a", settings).folder.url.rpartition("/")[2]

    assert name(ProposalSettings()) == FOLDER_BEFORE
    assert name(ProposalSettings(points_per_batch=7)) == FOLDER_BEFORE
    others = {name(replace(ProposalSettings(), fill_points_per_side=count)) for count in (48, 64)}
    assert len(others | {FOLDER_BEFORE}) == 3
