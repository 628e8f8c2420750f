"""A headless Chromium, driven over its own pipe: no driver, no port, no network."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


def chromium():
    """Path of a Chromium: of the variable CHROMIUM, else on the path; None without one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab, by the DevTools protocol; `errors` holds what the console complained of.

    Args:
        downloads: Folder that the page's downloads are put in.
    """

    def __init__(self, downloads):
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._home.name}"]
        flags += ["--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
        # Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
        script = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, chromium(), *flags, "about:blank"],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._last, self._session = b"", 0, None
        self.errors, self._loaded = [], False
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(item["targetId"] for item in targets if item["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._last:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def open(self, path, *, width=1366, height=768, dark=False, media=""):
        """Show a file, and return the seconds until it had loaded and drawn itself."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._loaded = False
        begun = time.monotonic()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not self._loaded:
            self._next()
        # The first frame measures the page, the second draws the charts.
        frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
        self.run(f"{frame}.then(() => {frame})")
        return time.monotonic() - begun

    def run(self, script):
        """Run JavaScript in the page, wait for it, and return its value."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key):
        """Press and release a key where the focus is."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Enter": 13, " ": 32, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37}
        common = {"key": key, "windowsVirtualKeyCode": code.get(key, 0)}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector):
        """Click the middle of the first element that a selector finds."""
        x, y = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            "node.scrollIntoView({block: 'nearest'}); const box = node.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path, *, whole=False):
        """Write a PNG of the window, or of the whole page."""
        options = {"captureBeyondViewport": whole}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {**size, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", **options)
        Path(path).write_bytes(b64decode(shot["data"]))

    def pdf(self):
        """Print the page on A4 and return the PDF."""
        printed = self.call(
            "Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True
        )
        return b64decode(printed["data"])

    def close(self):
        """End the browser."""
        self._session = None
        with contextlib.suppress(AssertionError, EOFError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._home.cleanup()

    def _next(self):
        """Return the next message, having noted what it says about the page."""
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 20)
            if not read:
                raise EOFError("Chromium ended.")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        method, told = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.errors.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(told["entry"]))
        return message
