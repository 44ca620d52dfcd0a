"""The demo page: what it shows, and the whole of it in a real browser where one is installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from scipy.optimize import isotonic_regression

import demo as demo_module
from common.errors import InputError
from corpus.nearest import Corpus
from demo import Demo, start
from text import TextEncoder

PICTURE = os.environ.get("DEMO_PICTURE")


@pytest.fixture(scope="module")
def demo(text_encoder, tmp_path_factory) -> Demo:
    """The demo of model.bin on some of the starter pairs, which is faster."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STARTER_DEV", "STARTER_TEST"):
            whole = getattr(demo_module, name)
            part = tmp_path_factory.mktemp("starter") / whole.name
            part.write_text("".join(whole.read_text().splitlines(keepends=True)[:50]))
            patch.setattr(demo_module, name, part)
        return Demo(text_encoder)


@pytest.fixture(scope="module")
def small_demo() -> Demo:
    """The demo of the small encoder that ships."""
    return Demo(TextEncoder(ROOT / "small"))


def test_the_small_encoder_has_its_own_page_without_torch(small_demo):
    page = small_demo.compare("A man plays a guitar.", "Somebody plays music.")
    rows = re.findall(r"<td>([\w ]+)</td><td>([\d.]+)</td>", page)
    expected = float(small_demo.encoder.similarity("A man plays a guitar.", "Somebody plays music."))
    assert [(name, float(value)) for name, value in rows] == [("small encoder", pytest.approx(expected, abs=6e-4))]
    assert ">guitar</span>" in page and "for the small encoder." in page
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from demo import SMALL, Demo
from text import TextEncoder
print(Demo(TextEncoder(SMALL)).rank("music", "a song\\na stone").count("<li>"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr


def test_the_score_is_the_cosine_on_the_scale_of_the_labels(demo, text_encoder):
    """Against scipy's isotonic regression on the validation part."""
    first, second = "A man plays a guitar.", "Somebody plays music."
    page = demo.compare(first, second)
    cosine = float(text_encoder.similarity(first, second))
    pairs = demo.validation
    x = np.prod(np.split(demo.embeddings, 2), axis=0).sum(1)[: len(pairs.labels)]
    order = np.argsort(x)
    expected = np.interp(cosine, x[order], isotonic_regression(pairs.labels[order].astype(float)).x)
    assert float(re.search(r'id="score">([\d.]+)', page)[1]) == pytest.approx(expected, abs=0.051)
    rows = re.findall(r"<td>(trained encoder|mean pooling)</td><td>([\d.]+)</td>", page)
    baseline = float(demo.encoders["mean pooling"].similarity(first, second))
    assert {name: float(value) for name, value in rows} == pytest.approx(
        {"trained encoder": cosine, "mean pooling": baseline}, abs=6e-4
    )
    assert ">guitar</span>" in page and page.count('<div class="tokens">') == 2


def test_what_is_typed_is_text_and_not_markup(demo):
    page = demo.compare("<script>alert(1)</script>", "a < b & c") + demo.rank("<i>", "<script>x</script>")
    assert "<script" not in page and "&lt;" in page


def test_nothing_typed_and_too_much_typed(demo):
    assert "Enter two sentences" in demo.compare("  ", "a")
    assert "Enter a query" in demo.rank("a", " \n ")
    with pytest.warns(UserWarning, match="1 sentence was truncated"):
        page = demo.compare("word " * 10_000, "a")
    assert "Only the first 256 tokens are used (1 of 2 texts truncated)" in page and "<details>" not in page


def test_ranking_skips_empty_lines(demo, text_encoder):
    page = demo.rank("a cat", "a dog\n\n  a kitten  \nstocks fell\n")
    shown = re.findall(r"<b>([\d.-]+)</b><span>(.*?)</span>", page)
    expected = text_encoder.rank("a cat", ["a dog", "a kitten", "stocks fell"])
    assert shown == [(f"{match.similarity:.3f}", match.document) for match in expected]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Three sentences, encoded."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "lines.txt").write_text("Stocks fell.\nThe dog lies in its <basket>.\nThe train is late.\n")
    done = run_script("encode.py", "--data", folder / "lines.txt", "--out", folder / "vectors", "--processes", "1")
    assert done.returncode == 0, done.stderr
    return Corpus(folder / "vectors")


@pytest.fixture
def corpus_demo(small_demo, corpus, monkeypatch) -> Demo:
    """The demo with a corpus to search."""
    monkeypatch.setattr(small_demo, "corpus", corpus)
    return small_demo


def test_a_corpus_is_searched_in_place_of_lines(corpus_demo):
    page = corpus_demo.search("Where do pets rest?")
    shown = re.findall(r"<b>([\d.-]+)</b><span>(.*?)</span>", page)
    assert len(shown) == 3 and shown[0][1] == "The dog lies in its &lt;basket&gt;." and "nearest of 3 sentences" in page
    cosine = corpus_demo.encoder.similarity("Where do pets rest?", "The dog lies in its <basket>.")
    assert float(shown[0][0]) == pytest.approx(float(cosine), abs=6e-4)
    assert "Enter a query" in corpus_demo.search(" ")


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-demo.txt"):
        demo_module._import_gradio()


def test_a_missing_checkpoint_is_an_error_before_anything_starts(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--model", "nowhere.bin"])
    with pytest.raises(InputError, match="no such file"):
        demo_module.main()


def test_options_that_do_not_fit_are_an_error_before_anything_starts(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--port", "99999999"])
    with pytest.raises(InputError, match="--port is 99999999, expected 1 to 65535"):
        demo_module.main()
    monkeypatch.setattr(sys, "argv", ["demo.py", "--index", "vectors", "--device", "cuda"])
    with pytest.raises(InputError, match="leave out --backbone and --device"):
        demo_module.main()


def test_a_port_in_use_is_one_clear_line(demo):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot serve the page at 127.0.0.1:{port}: .*; choose another --host or --port"):
            start(demo, port=port)


@pytest.fixture
def browser() -> Iterator:
    """Debian's chromium, driven by its own driver."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("no browser is installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options, Service(driver))
    chrome.set_window_size(1000, 1250)
    yield chrome
    chrome.quit()


def hands_on(browser) -> tuple:
    """Functions that find an element, wait for something, find a tab, and type into a field."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector: str):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def wait_for(condition):
        return WebDriverWait(browser, 60).until(lambda _: condition(), message=browser.page_source[-500:])

    def tab(name: str):
        return next(button for button in browser.find_elements(By.CSS_SELECTOR, "button[role=tab]") if button.text == name)

    def type_into(selector: str, text: str):
        field = find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        return field

    return find, wait_for, tab, type_into


def test_in_a_browser(small_demo, browser, tmp_path):
    """Types two sentences, reads the score, sees shaded tokens, ranks by keyboard, sees the map, on a desk and on a phone."""
    import gradio
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    find, wait_for, tab, type_into = hands_on(browser)
    try:
        browser.get(start(small_demo))
        wait_for(lambda: browser.find_elements(By.ID, "score"))
        type_into("#first textarea, #first input", "The cat sleeps on the sofa.")
        type_into("#second textarea, #second input", "A kitten naps on the couch.").send_keys(Keys.ENTER)
        wait_for(lambda: "kitten" in find("#compared").text)
        assert 2.5 < float(find("#score").text.split()[0]) <= 5
        shades = {token.text: token.value_of_css_property("background-color") for token in
                  browser.find_elements(By.CSS_SELECTOR, ".tokens span")}  # fmt: skip
        assert {"cat", "kitten"} <= set(shades) and len(set(shades.values())) > 3
        find("summary").click()
        wait_for(lambda: find(".shares table").is_displayed())
        picture = Path(PICTURE or tmp_path / "demo.png")
        assert browser.save_screenshot(str(picture.resolve())) and picture.stat().st_size < 300_000

        tab("Rank").click()
        type_into("#query textarea, #query input", "Where do pets rest?")
        type_into("#lines textarea", "Stocks fell.\nThe dog lies in its basket.\n").send_keys(Keys.TAB)
        assert browser.switch_to.active_element.get_attribute("id") == "rank"
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        wait_for(lambda: "basket" in find("#ranked li").text)

        tab("Map").click()
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "#map .main-svg"))

        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        for name in ("Compare", "Rank", "Map"):
            tab(name).click()
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, name

        messages = "".join(entry["message"] for entry in browser.get_log("performance"))
        asked = set(re.findall(r'"documentURL":"[^"]*".*?"url":"(https?://[^/"]+)', messages))
        assert asked and all(address.startswith("http://127.0.0.1") for address in asked), asked
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        gradio.close_all()


def test_a_corpus_in_a_browser(corpus_demo, browser):
    """Asks a question and reads the sentence that answers it; there is no field for lines."""
    import gradio
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    find, wait_for, tab, type_into = hands_on(browser)
    try:
        browser.get(start(corpus_demo))
        wait_for(lambda: browser.find_elements(By.ID, "score"))
        tab("Rank").click()
        assert browser.find_elements(By.CSS_SELECTOR, "#lines textarea") == []
        type_into("#query textarea, #query input", "Where do pets rest?").send_keys(Keys.ENTER)
        wait_for(lambda: "<basket>" in find("#ranked li").text)
        assert "nearest of 3 sentences" in find("#ranked").text
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        gradio.close_all()
