"""Segmentation seeds from image-level labels: `fmwsss.load_config`, `run`, `open`, `plan`, `status`, `predict`.

The method itself is in `fmwsss.core` (docs/python.md). Names are imported when they are first asked for, so that
`import fmwsss` needs neither Ray nor torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmwsss.jobs.api import open as open
    from fmwsss.jobs.api import plan as plan
    from fmwsss.jobs.api import predict as predict
    from fmwsss.jobs.api import run as run
    from fmwsss.jobs.api import status as status
    from fmwsss.jobs.config.load import load_config as load_config

    __version__: str

_MODULES = {
    "load_config": "jobs.config.load",
    **dict.fromkeys(("open", "plan", "predict", "run", "status"), "jobs.api"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fmwsss")
    from fmwsss.core.lazy_exports import lazy_exports

    return lazy_exports(__name__, _MODULES)(name)
