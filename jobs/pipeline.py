"""Entry point: `python -m fmwsss.jobs.pipeline RUN_FILE [key=value ...]` is `fmwsss run RUN_FILE [key=value ...]`."""

import sys

from fmwsss.jobs.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
