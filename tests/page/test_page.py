"""The page in headless Chromium: a person types names, generates, moves the slider, plots, downloads, and makes mistakes."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

from args.common import ROOT
from ldm.util import UserError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
WAIT = 240_000  # milliseconds, for machines that do much else


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--preset", "mini", "--port", str(port), "--ddim_steps", "4", "--max_images", "8", "--max_length", "60"]
    with subprocess.Popen([sys.executable, "-m", "ldm.page", *words], cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
                          stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == f"open http://127.0.0.1:{port} (Ctrl-C ends the page)\n"
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)


@pytest.fixture
def page(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#generate")
        yield page
        browser.close()


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


def wait_for_images(page, selector, count):
    page.wait_for_function(f"document.querySelectorAll('{selector} img').length == {count}")


def test_a_port_in_use_gives_a_sentence():
    gradio = pytest.importorskip("gradio")
    from ldm.page.layout import serve

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with gradio.Blocks() as page, pytest.raises(UserError, match="is not free"):
            serve(page, *other.getsockname())


def test_a_page_that_a_proxy_hides_gives_a_sentence(monkeypatch):
    gradio = pytest.importorskip("gradio")
    from ldm.page.layout import serve

    monkeypatch.setattr("gradio.networking.url_ok", lambda _: False)
    with gradio.Blocks() as page, pytest.raises(UserError, match="cannot be reached at 127.0.0.1 .*NO_PROXY"):
        serve(page, "127.0.0.1", 7861)
    page.close()


@pytest.mark.weights
@pytest.mark.skipif(bool(MISSING), reason=f"the page is tested with {', '.join(MISSING)}, which is not installed")
def test_a_person_compares_images_with_and_without_a_prefix(page, address, tmp_path):
    page.fill("#prompts textarea", "A close-up portrait of Alina Dundale")
    page.click("#generate")
    wait_for_images(page, "#results", 2)
    page.wait_for_selector("#download:not([disabled])")
    plain, prefixed = texts(page, "#results figure")
    assert "without a prefix" in plain and "apl-mini, strength 1" in prefixed and "nearest:" in plain
    sources = [image.get_attribute("src") for image in page.locator("#results img").all()]
    assert sources[0] != sources[1]

    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as file:
        settings = json.loads(file.read("settings.json"))
        assert sorted(file.namelist()) == ["01-none.png", "02-apl-mini.png", "settings.json"] and settings["ddim_steps"] == 4
    id_acc = [image["id_acc"] for image in settings["images"]]
    assert id_acc[0] > 0.3 and all(value is None or f"ID-ACC {value:.2f}" in text
                                   for value, text in zip(id_acc, (plain, prefixed), strict=True))

    page.click("#strength input[type=range]", position={"x": 1, "y": 5})  # the slider at 0 gives the image without a prefix
    page.wait_for_function("document.querySelector('#results').innerText.includes('strength 0')")
    wait_for_images(page, "#results", 2)
    assert [image.get_attribute("src") for image in page.locator("#results img").all()] == [sources[0]] * 2

    page.focus("#strength input[type=range]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#results').innerText.includes('strength 0.05')")
    wait_for_images(page, "#results", 2)

    page.click("#plot")
    wait_for_images(page, "#strip", 8)  # the plot, and one per strength
    for width in (320, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    first, second = (image.bounding_box() for image in page.locator("#results img").all())
    assert first["y"] == second["y"] and first["x"] < second["x"]  # side by side on a phone

    page.fill("#prompts textarea", "x" * 61)
    page.click("#generate")
    assert page.wait_for_selector("#results [role=alert]").inner_text() == "A prompt has 61 characters; shorten it to 60."
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
