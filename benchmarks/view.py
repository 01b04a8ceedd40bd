"""How long `fmwsss view` takes to a first screen, and what it holds: `python -m benchmarks.view [--images 100000]`.

A run of that many images is written first (four stages, no models), then the server is started as the command starts
it, in a process of its own; asked is what a browser asks for the first screen: the page, the run, 48 images and the
thumbnails of the first twelve.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fmwsss.cluster.storage.folder import Folder
from tests.support.seeded_run import make_run

NUM_SEEN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shard-rows", type=int, default=32)
    parser.add_argument("--run", help="a run that is there; else one is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.run or f"{folder}/run"
        if not arguments.run:
            make_run(Folder(url), arguments.images, arguments.shard_rows)
        print(json.dumps({"images": arguments.images, "shard_rows": arguments.shard_rows, **measure(url)}))


def measure(url: str) -> dict[str, Any]:
    """Seconds and MiB of a server of a run."""
    started_s = time.monotonic()
    command = [sys.executable, "-m", "fmwsss.jobs", "view", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as server:
        assert server.stdout is not None
        try:
            found = re.search(r"http://127.0.0.1:(\d+)/\?token=(\S+)", server.stdout.readline())
            assert found, "the server did not start"
            told: dict[str, Any] = {"start_s": time.monotonic() - started_s}
            begin_s = time.monotonic()
            port, cookie = int(found[1]), f"fmwsss-view-{found[1]}={found[2]}"
            ask(port, cookie, "/")
            ask(port, cookie, "/api/run")
            page = json.loads(ask(port, cookie, "/api/images"))
            told["images_s"] = time.monotonic() - begin_s
            for image in page["images"][:NUM_SEEN]:
                ask(port, cookie, f"/thumbnail?id={quote(image['id'])}")
            told["first_screen_s"] = time.monotonic() - begin_s
            while True:
                state = json.loads(ask(port, cookie, "/api/run"))
                if state["indexed_parts"] == state["parts"]:
                    break
                time.sleep(0.2)
            told["whole_index_s"] = time.monotonic() - begin_s
            for name, path in (("first_page_s", "/api/images"), ("last_page_s", "/api/images?page=1000000")):
                asked_s = time.monotonic()
                ask(port, cookie, path)
                told[name] = time.monotonic() - asked_s
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
            assert resident
            told["rss_mib"] = int(resident[1]) / 1024
            return {name: round(value, 3) for name, value in told.items()}
        finally:
            server.terminate()


def ask(port: int, cookie: str, path: str) -> bytes:
    """What the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path, headers={"cookie": cookie})
        response = connection.getresponse()
        assert response.status == 200, (path, response.status)
        return response.read()
    finally:
        connection.close()


if __name__ == "__main__":
    main()
