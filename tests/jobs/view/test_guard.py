"""Nobody else on this machine, no other site, and no id, label or error gets anything out of the server."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.core.errors import InputError
from fmwsss.jobs.view.app import static_files
from fmwsss.jobs.view.serve import prepare
from tests.jobs.view.conftest import HARMFUL
from tests.support.seeded_run import make_run
from tests.support.viewer import Viewer, viewing

PATHS = [
    "/", "/image?id=img-00001", "/api/run", "/api/images", "/api/list", "/api/image?id=img-00001",
    "/api/at?id=img-00001", "/thumbnail?id=img-00001", "/layer?id=img-00001", "/static/main.js", "/nothing",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_told(viewer: Viewer, path: str) -> None:
    separator = "&" if "?" in path else "?"
    for target, headers in (
        (path, {}),
        (path, {"cookie": f"{viewer.cookie.partition('=')[0]}=x{viewer.token[1:]}"}),
        (path, {"cookie": f"another={viewer.token}"}),
        (f"{path}{separator}token=wrong", {}),
        (f"{path}{separator}token=wrong", {"cookie": viewer.cookie}),
    ):
        answer = viewer.ask("GET", target, headers)
        assert answer.status == 403
        assert b"img-" not in answer.body
        assert "set-cookie" not in answer.headers


def test_the_token_becomes_a_cookie_that_no_script_sees(viewer: Viewer) -> None:
    answer = viewer.ask("GET", f"/?class=cat&token={viewer.token}")
    assert (answer.status, answer.headers["location"]) == (303, "/?class=cat")
    assert {"HttpOnly", "SameSite=strict"} <= {word.strip() for word in answer.headers["set-cookie"].split(";")}
    assert viewer.ask("GET", f"//evil.example/?token={viewer.token}").headers.get("location", "/")[:2] != "//"


def test_another_name_of_this_machine_gets_nothing(viewer: Viewer) -> None:
    for host in ("evil.example", f"evil.example:{viewer.hosts[1]}", "127.0.0.1", ""):
        answer = viewer.ask("GET", "/api/run", {"cookie": viewer.cookie, "host": host})
        assert answer.status in (400, 421)
    assert viewer.get("/api/run").status == 200


def test_it_listens_on_this_machine_alone(viewer: Viewer) -> None:
    assert viewer.served.sock.getsockname()[0] == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as sock:
            sock.settimeout(2)
            assert sock.connect_ex((str(address), viewer.hosts[1])) != 0


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/__init__.py",
     "/../../../etc/passwd", "/static/..%5capp.py", "/static/%00", "/manifest.json"],
)  # fmt: skip
def test_no_path_leaves_the_front_end(viewer: Viewer, path: str) -> None:
    answer = viewer.ask("GET", path, {"cookie": viewer.cookie})
    assert answer.status == 404
    assert b"import" not in answer.body
    assert b"root:" not in answer.body


@pytest.mark.parametrize(
    "image_id", ["../manifest", "../../etc/passwd", "/etc/passwd", "img-00001/../img-00002", "", "%00"]
)
def test_no_id_leaves_the_run(viewer: Viewer, image_id: str) -> None:
    for path in ("/api/image", "/api/at", "/layer", "/thumbnail", "/superpixel"):
        answer = viewer.get(path, id=image_id, index=0)
        assert answer.status == 404
        assert "there is no image" in answer.json["error"]


def test_every_answer_forbids_code_of_others(viewer: Viewer) -> None:
    for path in PATHS:
        headers = viewer.ask("GET", path, {"cookie": viewer.cookie}).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_what_data_hold_is_data(tmp_path: Path) -> None:
    run = make_run(Folder(str(tmp_path / "run")), 12, 5, name=HARMFUL, failing=1)
    with viewing(run.folder.url) as own:
        ids = [image["id"] for image in own.get("/api/images", size=50).json["images"]]
        assert sorted(ids) == sorted(HARMFUL.format(number) for number in range(12))
        assert own.get("/layer", id=ids[0], layer="fine").headers["content-type"] == "image/png"
        for path in ("/api/images", "/api/image", "/api/list"):
            kind = own.get(path, id=HARMFUL.format(0)).headers["content-type"]
            assert kind.partition(";")[0] in ("application/json", "text/plain")
        assert own.get("/api/image", id=HARMFUL.format(0)).json["failures"][0]["message"] == "<b>too dark</b>"


def test_the_front_end_makes_no_markup_of_text_and_asks_nobody_else() -> None:
    for name, data in static_files().items():
        text = data.decode()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
            assert word not in text, f"{name} uses {word}"
        addresses = [word for word in text.replace('"', " ").split() if "://" in word]
        assert all(word.startswith("http://www.w3.org/") for word in addresses), f"{name} names {addresses}"


def test_only_pages_of_the_server_change_anything(own_run_url: str) -> None:
    body = json.dumps({"image": "img-00001", "action": "accept"}).encode()
    with viewing(own_run_url, edit=True) as own:
        good = {"cookie": own.cookie, "x-fmwsss": "1"}
        for headers in (
            {"x-fmwsss": "1"},
            {"cookie": own.cookie},
            {**good, "origin": "https://evil.example"},
            {**good, "origin": "null"},
        ):
            assert own.ask("POST", "/api/corrections", headers, body).status == 403
        assert not os.path.isdir(f"{own_run_url}/review")
        here = f"http://127.0.0.1:{own.hosts[1]}"
        assert own.ask("POST", "/api/corrections", {**good, "origin": here}, body).status == 200


def test_read_only_unless_asked(viewer: Viewer) -> None:
    assert viewer.correct(image="img-00001", action="accept").status == 404
    assert viewer.get("/api/run").json["editable"] is False
    for method in ("PUT", "DELETE", "PATCH"):
        headers = {"cookie": viewer.cookie, "x-fmwsss": "1"}
        assert viewer.ask(method, "/api/images", headers).status == 405


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no run at .*: it has no manifest.json"):
        prepare(str(tmp_path), None, False, 0, None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"can't be used .*leave --port out"):
            prepare(str(tmp_path), None, False, taken.getsockname()[1], None)
