"""The report in headless Chromium, from file://: what a reviewer does with it, and that nothing else is requested."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_shards import write_shards
from inference_runs import write_checkpoint
from schemas import check_rows
from stage1.data.reader import ClipReader
from stage1.data.review_labels import apply_review_labels, read_review_labels
from stage1.inference.run import InferConfig, infer
from stage1.review.report import ReportConfig, write_report
from stage1.training.clip_objective import ClipObjective
from stage1.training.config import TrainConfig
from stage1.training.data import open_data

selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
selenium_keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]

NUM_CLIPS = 1000
MAX_BYTES = 60e6
MAX_SECONDS = 3.0  # until a thousand detections react to a key


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a run with a thousand detections, some of them false alarms."""
    folder = tmp_path_factory.mktemp("report")
    clips = np.random.default_rng(0).integers(0, 256, (NUM_CLIPS, 4, 16, 16, 3), np.uint8)
    labels = [int(i % 4 > 0) for i in range(NUM_CLIPS)]
    names = [("Fighting", "Robbery")[i % 8 > 4] if label else "NormalVideos" for i, label in enumerate(labels)]
    shards = write_shards(folder / "shards", clips, labels, class_names=names, clips_per_shard=500)
    checkpoint = write_checkpoint(folder / "model.pt")
    infer(InferConfig(shards=shards, checkpoint=checkpoint, out=folder / "run", threshold=0.0, batch_size=100))
    return write_report(ReportConfig(folder=folder / "run")).path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--window-size=1300,1400"),
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def keys_shown(browser: Any) -> list[str]:
    found: list[str] = browser.execute_script("return [...document.querySelectorAll('.item')].map(i => i.dataset.key)")
    return found


def count_shown(browser: Any) -> str:
    text: str = browser.execute_script("return document.getElementById('count').textContent")
    return text


def active_key(browser: Any) -> str:
    key: str = browser.execute_script("return document.activeElement.dataset.key")
    return key


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def press(browser: Any, keys: str) -> None:
    selenium.ActionChains(browser).send_keys(keys).perform()


def choose(browser: Any, element: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'));",
        element,
        value,
    )


def test_a_reviewer_finds_marks_and_exports(report: Path, browser: Any, tmp_path: Path) -> None:
    assert report.stat().st_size < MAX_BYTES
    browser.get(report.as_uri())
    assert count_shown(browser) == "1,000 of 1,000 shown, 0 labelled"
    assert len(keys_shown(browser)) == 40  # the page draws no more at once, so it opens as quickly as a short one

    # Ground truth is hidden until asked for: no class, no outcome, and no name of a video that may hold the class.
    assert not re.search("Fighting|Robbery|Normal|alarm|hit", browser.find_element("id", "items").text)
    browser.find_element("id", "truth").click()
    assert "Robbery/video-" in browser.find_element("id", "items").text

    # Sorting and filtering.
    of_key = {item["key"]: item for item in browser.execute_script("return data.items.map(i => ({...i, image: ''}))")}
    choose(browser, "sort", "strongest")
    confidences = [of_key[key]["confidence"] for key in keys_shown(browser)]
    assert confidences == sorted(confidences, reverse=True)
    choose(browser, "sort", "weakest")
    assert of_key[keys_shown(browser)[0]]["confidence"] == min(item["confidence"] for item in of_key.values())
    choose(browser, "class", "=Robbery")
    assert {of_key[key]["class"] for key in keys_shown(browser)} == {"Robbery"}
    choose(browser, "class", "")
    browser.execute_script("document.getElementById('outcome-hit').click()")
    assert {of_key[key]["outcome"] for key in keys_shown(browser)} == {"alarm"}
    browser.execute_script("document.getElementById('outcome-hit').click()")
    choose(browser, "query", "video-007")
    assert {of_key[key]["source"] for key in keys_shown(browser)} == {"Robbery/video-007.mp4"}
    choose(browser, "query", "")
    browser.find_element("id", "truth").click()

    # Labelling with the keyboard alone: crime, not crime, unsure with a note; then one too many, and back.
    choose(browser, "sort", "strongest")
    labelled = keys_shown(browser)[:4]
    press(browser, "jtfsku")
    assert count_shown(browser).endswith("2 labelled")
    press(browser, "s" + "km" + "dark, far" + selenium_keys.ENTER)
    press(browser, "jt" + "u")
    assert active_key(browser) == labelled[3]
    press(browser, "kkkg")
    assert active_key(browser) == labelled[3]
    press(browser, "j" * 40)
    assert browser.execute_script("return document.getElementById('page').textContent") == "page 2 of 25"
    assert active_key(browser) == keys_shown(browser)[3]
    choose(browser, "marked", "true")
    assert keys_shown(browser) == labelled[:1]
    choose(browser, "marked", "")
    press(browser, "e")
    download = tmp_path / "downloads" / "marks.csv"
    for _ in range(600):
        if download.is_file():
            break
        time.sleep(0.1)
    with open(download, newline="", encoding="utf-8") as file:
        rows = {row["key"]: (row["mark"], row["note"]) for row in csv.DictReader(file)}
    assert rows == {labelled[0]: ("true", ""), labelled[1]: ("false", ""), labelled[2]: ("unsure", "dark, far")}
    check_rows(download, "marks")
    reader = ClipReader(report.parent.parent / "shards")
    assert apply_review_labels([reader], read_review_labels([download]), use="labels").num_found == 2

    # What was exported is imported again.
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert count_shown(browser).endswith("0 labelled")
    browser.find_element("id", "import").send_keys(str(download))
    wait(lambda: count_shown(browser).endswith("3 labelled; 3 of 3 labels of marks.csv imported"))
    other = tmp_path / "other.csv"
    other.write_text(download.read_text().replace(reader.digest, "0" * 64))
    browser.find_element("id", "import").send_keys(str(other))
    wait(lambda: count_shown(browser).endswith("3 labelled; 0 of 3 labels of other.csv imported"))

    # Marks outlast the page; nothing was asked for but the page; nothing went wrong.
    browser.refresh()
    assert count_shown(browser).endswith("3 labelled")
    # chrome: is the browser's own first page, which a page from file:// may not load.
    asked = {url.split(":")[0] for url in requests(browser)} - {"chrome"}
    assert asked <= {"file", "data", "blob"}, asked
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_a_thousand_open_quickly_and_a_hundred_are_labelled_by_keys_alone(
    report: Path, browser: Any, tmp_path: Path
) -> None:
    seconds = []
    for _ in range(3):  # the machine may do other things
        start = time.monotonic()
        browser.get(report.as_uri())
        press(browser, "j")
        assert active_key(browser) == keys_shown(browser)[0]
        seconds.append(time.monotonic() - start)
    assert min(seconds) < MAX_SECONDS
    press(browser, "tfs" * 33 + "t")
    assert count_shown(browser).endswith("100 labelled")
    press(browser, "e")
    download = tmp_path / "downloads" / "marks.csv"
    wait(download.is_file)
    with open(download, newline="", encoding="utf-8") as file:
        marks = [row["mark"] for row in csv.DictReader(file)]
    assert [marks.count(mark) for mark in ("true", "false", "unsure")] == [34, 33, 33]
    assert {url.split(":")[0] for url in requests(browser)} - {"chrome"} <= {"file", "data", "blob"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_detections_of_several_videos_of_a_camera_are_in_the_order_of_the_clock(tmp_path: Path, browser: Any) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 4, 16, 16, 3), np.uint8)
    shards = write_shards(tmp_path / "shards", clips, [-1] * 4)
    infer(InferConfig(shards=shards, checkpoint=write_checkpoint(tmp_path / "m.pt"), out=tmp_path / "run", threshold=0))
    began = {"video-000": ("09:00", "gate"), "video-001": ("08:00", "yard"), "video-002": ("07:00", "gate")}
    (tmp_path / "times.csv").write_text(
        "video,start,camera\n"
        + "".join(f"{name},2026-01-31T{time},{camera}\n" for name, (time, camera) in began.items())
    )
    config = ReportConfig(folder=tmp_path / "run", start_times=tmp_path / "times.csv")
    browser.get(write_report(config).path.as_uri())
    choose(browser, "sort", "camera")
    text = browser.find_element("id", "items").text
    places = [text.index(f"{name}.mp4") for name in ("video-003", "video-002", "video-000", "video-001")]
    assert places == sorted(places)
    assert re.search(r"gate · video-002\.mp4", text)
    assert "2026-01-31 07:00:00 · gate" in text


def test_detections_are_in_the_order_of_the_clock_without_cameras(tmp_path: Path, browser: Any) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    shards = write_shards(tmp_path / "shards", clips, [-1] * 3)
    infer(InferConfig(shards=shards, checkpoint=write_checkpoint(tmp_path / "m.pt"), out=tmp_path / "run", threshold=0))
    browser.get(write_report(ReportConfig(folder=tmp_path / "run")).path.as_uri())
    assert browser.find_element("id", "sort-camera").get_property("hidden")
    rows = "".join(f"video-00{number},2026-01-31T0{9 - number}:00\n" for number in range(3))
    (tmp_path / "times.csv").write_text("video,start\n" + rows)
    config = ReportConfig(folder=tmp_path / "run", start_times=tmp_path / "times.csv")
    browser.get(write_report(config).path.as_uri())
    assert not browser.find_element("id", "sort-camera").get_property("hidden")
    choose(browser, "sort", "camera")
    text = browser.find_element("id", "items").text
    places = [text.index(f"video-00{number}.mp4") for number in (2, 1, 0)]
    assert places == sorted(places)


def test_the_page_has_names_for_those_who_hear_it(report: Path, browser: Any) -> None:
    browser.get(report.as_uri())
    nameless = browser.execute_script("""
        const named = (e) => e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length);
        return [...document.querySelectorAll("button, select, input, svg[role=img], article")].filter((e) => !named(e))
          .map((e) => e.outerHTML.slice(0, 80));
    """)
    assert nameless == []
    assert browser.execute_script("return [...document.images].filter((i) => !i.alt).length") == 0
    assert browser.execute_script("return document.documentElement.lang") == "en"


def test_labels_of_new_footage_are_in_the_batches_of_the_next_training(tmp_path: Path, browser: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (14, 4, 16, 16, 3), np.uint8)
    known = write_shards(tmp_path / "known", noise[:8], [0, 1] * 4)
    new = write_shards(tmp_path / "new", noise[8:], [-1] * 6, prefix="new-")
    checkpoint = write_checkpoint(tmp_path / "model.pt")
    infer(InferConfig(shards=new, checkpoint=checkpoint, out=tmp_path / "run", threshold=0.0))
    browser.get(write_report(ReportConfig(folder=tmp_path / "run")).path.as_uri())
    choose(browser, "sort", "video")
    press(browser, "jtftsf" + "e")
    download = tmp_path / "downloads" / "marks.csv"
    wait(download.is_file)

    config = TrainConfig(shards=(known, new), marks=(download,), val_fraction=0.0, batch_size=12)
    loader, _ = ClipObjective(config=config).make_loaders(open_data(config), torch.device("cpu"))
    (batch,) = loader
    labels = dict(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True))
    assert {row: labels.get(row) for row in range(8, 14)} == {8: 1, 9: 0, 10: 1, 11: None, 12: 0, 13: None}
    assert [labels[row] for row in range(8)] == [0, 1] * 4


def test_frames_loop_on_focus_but_not_for_those_who_want_no_motion(report: Path, browser: Any) -> None:
    frame = "return document.querySelector('.item.current .loop').style.backgroundPosition"
    browser.get(report.as_uri())
    press(browser, "j")
    seen = set()
    wait(lambda: len(seen.add(browser.execute_script(frame)) or seen) > 2)
    press(browser, " ")
    still = browser.execute_script(frame)
    time.sleep(0.6)
    assert browser.execute_script(frame) == still
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    press(browser, "j")
    still = browser.execute_script(frame)
    time.sleep(0.6)
    assert browser.execute_script(frame) == still


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")])
def test_the_page_fits_wide_and_narrow_screens(report: Path, browser: Any, width: int, scheme: str) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(report.as_uri())
    for tab in ("detections", "figures"):
        browser.find_element("id", f"tab-{tab}").click()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        picture = report.with_name(f"{tab}-{width}-{scheme}.png")
        browser.save_screenshot(str(picture))
    browser.find_element("id", "tab-detections").click()
    assert browser.execute_script("return document.querySelector('.loop').getBoundingClientRect().width") >= 100
    assert browser.execute_script("return document.getElementById('filters').open") == (width > 700)
