"""Looks at a page in headless Chromium, as on a phone and on a desk: python tests/look_at_page.py FILE.html OUT_DIR

Writes phone.png, desktop.png and phone-dark.png, and ends with status 1 and a sentence where the page scrolls sideways, an image has not
loaded, or something is asked of another address. No test collects it: it needs a browser (chromium, chromium-browser or google-chrome).
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VIEWS = {"phone": (390, 844, "light"), "desktop": (1280, 800, "light"), "phone-dark": (390, 844, "dark")}
TALLEST = 16000  # pixels of a screenshot
MEASURE = """(() => {
  const folded = [...document.querySelectorAll('details:not([open])')];
  folded.forEach(each => each.open = true);
  const wide = document.documentElement.scrollWidth;  // with everything that can be shown
  folded.forEach(each => each.open = false);
  return {wide, high: document.documentElement.scrollHeight,
    broken: [...document.images].filter(image => !(image.complete && image.naturalWidth)).map(image => image.alt),
    outside: [...document.querySelectorAll('[src], [href]')].map(each => each.getAttribute('src') || each.getAttribute('href'))
      .filter(address => !address.startsWith('#') && !address.startsWith('data:'))};
})()"""


class Browser:
    """Chromium that is spoken to through two pipes: JSON messages, a zero byte behind each (--remote-debugging-pipe)."""

    def __init__(self, profile: str) -> None:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if program is None:
            sys.exit("there is no chromium, chromium-browser or google-chrome on the PATH; install one")
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        pipes = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["sh", "-c", pipes, program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = ours_out, os.fdopen(ours_in, "rb")
        self._sent, self._session = 0, None
        self.asked: list[str] = []  # addresses that the pages have asked for
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Network"):
            self.send(f"{part}.enable")

    def send(self, method: str, **params: Any) -> dict:
        """What the browser answers."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        left = memoryview(json.dumps(message).encode() + b"\0")
        while left:
            left = left[os.write(self._out, left):]
        while (answer := self._next()).get("id") != self._sent:
            pass
        if "error" in answer:
            sys.exit(f"the browser does not do {method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, address: str) -> None:
        """Goes to a page and waits until it has loaded."""
        self.send("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _next(self) -> dict:
        letters = bytearray()
        while (letter := self._in.read(1)) != b"\0":
            if not letter:
                sys.exit("the browser has ended before its time")
            letters += letter
        message = json.loads(letters)
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        return message


def look(browser: Browser, page: Path, out_dir: Path, view: str) -> list[str]:
    """Writes the view's screenshot; what is wrong with the page in it, one sentence each."""
    width, height, scheme = VIEWS[view]
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page.resolve().as_uri())
    seen = browser.send("Runtime.evaluate", expression=MEASURE, returnByValue=True)["result"]["value"]
    whole = {"x": 0, "y": 0, "width": width, "height": min(seen["high"], TALLEST), "scale": 1}
    picture = browser.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=whole)["data"]
    (out_dir / f"{view}.png").write_bytes(base64.b64decode(picture))
    wrong = [f"{view}: the page is {seen['wide']} pixels wide where the screen has {width}"] if seen["wide"] > width else []
    wrong += [f"{view}: the image '{alt}' has not loaded" for alt in seen["broken"]]
    addresses = seen["outside"] + [asked for asked in browser.asked if not asked.startswith(("file:", "data:"))]
    return wrong + [f"{view}: the page refers to {address}" for address in dict.fromkeys(addresses)]


def main(page: str, out_dir: str) -> None:
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            wrong = [sentence for view in VIEWS for sentence in look(browser, Path(page), Path(out_dir), view)]
        finally:
            browser.close()
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{page}: nothing scrolls sideways, every image has loaded, and no other address is asked; screenshots in {out_dir}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/look_at_page.py FILE.html OUT_DIR")
    main(*sys.argv[1:])
