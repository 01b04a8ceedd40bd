"""Packages that not every installation has; the message names the extra that brings them."""

from __future__ import annotations

import importlib.util

from fmwsss.cluster.models.spec import ModelError


def demand_package(package: str, extra: str, what: str) -> None:
    """Refuses on the driver, before the first image, what would fail on a worker hours later.

    Args:
        package: its import name.
        extra: of pyproject.toml.
        what: needs it; the beginning of the line.

    Raises:
        ModelError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{what} needs the package {package}: `pip install 'fmwsss[{extra}]'`, on every node")
