"""Entry point: `python -m fmwsss.jobs` is the command `fmwsss`."""

from fmwsss.jobs.cli import main

if __name__ == "__main__":
    main()
