"""The pages in a real browser: Debian's Chromium, driven by Selenium; skipped where there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmwsss.cluster.storage.folder import Folder
from fmwsss.jobs.review.corrections import ReviewLog, standing
from tests.support.seeded_run import HEIGHT, WIDTH, confidence_of, make_run, superpixels_of
from tests.support.viewer import Viewer, viewing

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver"),
]
SIZES = {"wide": (1400, 900), "phone": (390, 844)}
NUM_IMAGES = 20_000
PATIENCE_S = 120.0


class Browser:
    """A window of Chromium; whatever it writes to its console is an error of ours."""

    def __init__(self, size: tuple[int, int]) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(word)
        options.binary_location = str(CHROMIUM)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, question: Callable[[], Any]) -> Any:
        """What the question answers, when that is something."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            if answer := question():
                return answer
            time.sleep(0.1)
        raise AssertionError(f"not within {PATIENCE_S:.0f} s; the page says {self.text('body')[:500]!r}")

    def text(self, selector: str) -> str:
        return self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def ids(self) -> list[str]:
        return self.script("return [...document.querySelectorAll('a.card')].map((own) => own.dataset.id)")

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def click_pixel(self, x: int, y: int) -> None:
        """A click on the image, at a pixel of it."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.script("document.querySelector('.frame').scrollIntoView({block: 'center'})")
        box = self.script(
            "const b = document.querySelector('.stage').getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]"
        )
        frame = self.script("const b = document.querySelector('.frame').getBoundingClientRect(); "
                            "return [b.left + b.width / 2, b.top + b.height / 2]")  # fmt: skip
        left = box[0] + (x + 0.5) * box[2] / WIDTH - frame[0]
        top = box[1] + (y + 0.5) * box[3] / HEIGHT - frame[1]
        element = self.driver.find_element("css selector", ".frame")
        ActionChains(self.driver).move_to_element_with_offset(element, round(left), round(top)).click().perform()

    def pictures_are_there(self) -> bool:
        """Whether all pictures that are on the screen are loaded, and there are some."""
        return self.script(
            "const own = [...document.querySelectorAll('img')]"
            ".filter((i) => i.getBoundingClientRect().top < innerHeight);"
            "return own.length > 0 && own.every((i) => i.complete && i.naturalWidth > 0)"
        )

    def demand_sound(self) -> None:
        """No error in the console, nothing wider than the screen, contrast AA and names for everything."""
        assert not [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert self.script("return document.documentElement.scrollWidth <= innerWidth")
        axe = pytest.importorskip("axe_core_python.base")
        source = next(Path(axe.__file__).parent.rglob("axe.min.js")).read_text(encoding="utf-8")
        # As a tool of the browser, not as a script of the page, which its policy would refuse.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
        found = self.driver.execute_async_script(
            "const done = arguments[0]; const told = (n) => n.html.slice(0, 120) + ' ' + n.failureSummary;"
            "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']})"
            ".then((r) => done(r.violations.map((v) => v.id + ': ' + v.nodes.map(told).join(' | '))))"
        )
        assert not found, "\n".join(found)

    def quit(self) -> None:
        self.driver.quit()


@pytest.fixture(params=list(SIZES))
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    own = Browser(SIZES[request.param])
    yield own
    own.quit()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = Folder(str(tmp_path_factory.mktemp("large") / "run"))
    with viewing(make_run(folder, NUM_IMAGES, 1_000).folder.url) as own:
        yield own


def test_first_screen_last_page_and_filter(browser: Browser, large: Viewer) -> None:
    browser.driver.get(large.served.address)
    browser.until(browser.ids)
    browser.until(browser.pictures_are_there)
    order = sorted(range(NUM_IMAGES), key=lambda number: confidence_of(number))
    assert [confidence_of(int(own[4:])) for own in browser.ids()] == [confidence_of(n) for n in order[:48]]
    assert "token" not in browser.driver.current_url
    browser.demand_sound()
    browser.click("#pager a:last-child")
    pages = -(-NUM_IMAGES // 48)
    browser.until(lambda: f"page {pages} of {pages}" in browser.text("#count"))
    assert len(browser.ids()) == NUM_IMAGES - 48 * (pages - 1)
    assert confidence_of(int(browser.ids()[-1][4:])) == max(map(confidence_of, range(1009)))
    browser.script("document.querySelectorAll('details').forEach((own) => { own.open = true; })")
    browser.script("const own = document.querySelector('select[name=\"class\"]'); own.value = 'cow';"
                   "own.dispatchEvent(new Event('change', {bubbles: true}))")  # fmt: skip
    browser.until(lambda: browser.text("#count").startswith("4,000 images"))
    assert "class=cow" in browser.driver.current_url
    assert all(int(own[4:]) % 5 == 0 for own in browser.ids())
    browser.demand_sound()
    browser.driver.back()
    browser.until(lambda: "20,000" in browser.text("#count"))


def test_three_clicks_correct_an_image(browser: Browser, tmp_path: Path) -> None:
    run = make_run(Folder(str(tmp_path / "run")), 20, 7)
    with viewing(run.folder.url, edit=True) as own:
        browser.driver.get(own.served.address)
        browser.until(browser.ids)
        browser.driver.get(f"http://127.0.0.1:{own.hosts[1]}/image?id=img-00010")
        browser.until(browser.pictures_are_there)
        browser.click_pixel(24, 12)
        browser.until(lambda: "superpixel 2" in browser.text("#picked"))
        browser.click('#paint [data-class="cat"]')
        browser.until(lambda: "1 corrections" in browser.text("main"))
        browser.click("#accept")
        browser.until(lambda: "accepted, 2 corrections" in browser.text("main"))
        browser.demand_sound()
    said = standing(ReviewLog(run.folder).rows())
    assert list(said) == ["img-00010"]
    (painted,) = said["img-00010"].painted
    assert (painted["class_name"], painted["rle"]) == ("cat", superpixels_of(10).rle[2])


def test_the_keyboard_alone_suffices(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    run = make_run(Folder(str(tmp_path / "run")), 20, 7)
    with viewing(run.folder.url, edit=True) as own:
        browser.driver.get(own.served.address)
        first, second, *_ = browser.until(browser.ids)
        browser.press("j", "j", "k")
        assert browser.script("return document.activeElement.dataset.id") == first
        browser.press("j", Keys.ENTER)
        browser.until(lambda: browser.text("#place").startswith("2 of 20"))
        assert browser.text("h1") == second
        browser.until(browser.pictures_are_there)
        before = browser.script("return document.querySelector('.stage').style.transform")
        browser.press("+")
        assert browser.script("return document.querySelector('.stage').style.transform") != before
        browser.press("f")
        assert browser.script("return document.querySelector('.stage').style.transform") == before
        assert browser.script("return !document.querySelector('[data-layer=\"truth\"]')")
        browser.press("8")
        browser.until(lambda: browser.script("return !!document.querySelector('[data-layer=\"truth\"]')"))
        browser.press("j")
        browser.until(lambda: browser.text("#place").startswith("3 of 20"))
        browser.press("k")
        browser.until(lambda: browser.text("#place").startswith("2 of 20"))
        browser.press("s")
        browser.until(lambda: " px): " in browser.text("#picked"))
        browser.press("b")
        browser.until(lambda: "1 corrections" in browser.text("main"))
        browser.press("a")
        browser.until(lambda: "accepted, 2" in browser.text("main"))
        browser.press("u")
        browser.until(lambda: "corrected, 1" in browser.text("main"))
        # The class by Tab and Enter.
        browser.press("s")
        browser.until(lambda: " px): " in browser.text("#picked"))
        for _ in range(60):
            browser.press(Keys.TAB)
            if browser.script("return document.activeElement.dataset.class") == "cat":
                break
        browser.press(Keys.ENTER)
        browser.until(lambda: "corrected, 2" in browser.text("main"))
        browser.press("g")
        browser.until(browser.ids)
    said = standing(ReviewLog(run.folder).rows())
    assert [row["class_name"] for row in said[second].painted] == [None, "cat"]


def test_compare_most_changed_first(browser: Browser, tmp_path: Path) -> None:
    one = make_run(Folder(str(tmp_path / "one")), 30, 7)
    two = make_run(Folder(str(tmp_path / "two")), 30, 7, shift=1)
    with viewing(one.folder.url, against=two.folder.url) as own:
        browser.driver.get(f"{own.served.address}&sort=changed&show=against")
        browser.until(browser.ids)
        browser.until(lambda: "changed" in browser.text("a.card"))
        cards = browser.script("return [...document.querySelectorAll('a.card')].map((own) => own.innerText)")
        share = [int(text.split("changed ")[1].split(" ")[0]) for text in cards]
        assert share == sorted(share, reverse=True)
        assert share[0] > 0
        browser.until(browser.pictures_are_there)
        browser.demand_sound()


def test_ids_and_errors_are_text(browser: Browser, tmp_path: Path) -> None:
    from tests.jobs.view.conftest import HARMFUL

    run = make_run(Folder(str(tmp_path / "run")), 12, 5, name=HARMFUL, failing=1)
    with viewing(run.folder.url) as own:
        browser.driver.get(own.served.address)
        assert set(browser.until(browser.ids)) == {HARMFUL.format(number) for number in range(12)}
        browser.click(".card")
        browser.until(lambda: browser.text("h1") in {HARMFUL.format(number) for number in range(12)})
        browser.driver.get(own.served.address + "&failed=1")
        browser.until(lambda: len(browser.ids()) == 1)
        browser.click(".card")
        browser.until(lambda: "<b>too dark</b>" in browser.text("main"))
        assert browser.script("return document.querySelectorAll('img[src=\"x\"], main b').length") == 0
        browser.demand_sound()
