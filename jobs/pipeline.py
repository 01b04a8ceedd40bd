"""Entry point: `python -m fmwsss.jobs.pipeline RUN_FILE [key=value ...]` is `fmwsss run RUN_FILE [key=value ...]`."""

import sys

from fmwsss.jobs.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]], prog_name="fmwsss")
