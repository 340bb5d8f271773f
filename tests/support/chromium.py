"""Drives the system's Chromium over a pipe with its own protocol, without a library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

_PATIENCE_S = 300


def why_no_browser() -> str:
    """The reason why tests cannot drive a browser here; empty if they can."""
    if PROGRAM is None:
        return "no Chromium on this machine (Debian: apt-get install chromium)"
    return "" if os.name == "posix" else "the pipe to Chromium needs a POSIX system"


class Browser:
    """One tab of a browser.

    Attributes:
        requests: the addresses that pages have requested so far.
        complaints: the errors that the browser has logged, including refusals by a security policy.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._session, self._rest = 0, "", b""
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and wait for its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                return dict(message["result"])
            self._events.append(message)

    def wait(self, event: str) -> None:
        """Wait for an event, unless it has already come."""
        while True:
            for place, message in enumerate(self._events):
                if message.get("method") == event:
                    del self._events[: place + 1]
                    return
            self._events.append(self._next())

    def open(self, address: str) -> None:
        """Open a page, and wait until it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        self.wait("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Run a script in the page from outside, whatever the page's policy; return its result."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def follow(self, script: str) -> None:
        """Run a script that leads to another page, and wait until that page is loaded."""
        self._events.clear()
        self.run(script)
        self.wait("Page.loadEventFired")

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.run(f"document.querySelector({selector!r}).focus()")
        self.call("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a form field a file, like a choice in its dialog or a drop."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def look(self, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Set the window's size, and a light or dark colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, *, whole: bool = True) -> bytes:
        """A PNG file of the visible part, or, with ``whole``, of the whole page."""
        clip: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        shot = self.call("Page.captureScreenshot", format="png", **clip)
        return base64.b64decode(shot["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, *_ = select.select([self._answers], [], [], _PATIENCE_S)
            assert ready, "the browser has not answered for minutes"
            block = os.read(self._answers, 2**16)
            assert block, "the browser has ended"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.complaints.append(message["params"]["entry"]["text"])
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a headless browser with an empty profile while the block runs."""
    assert PROGRAM is not None
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # In containers, its sandbox and shared memory do not work; it opens only our pages.
        options += ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        options += ["--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec 3<&{to_read} 4>&{to_write}; exec "$0" "$@"', PROGRAM, *options],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait()
            os.close(commands)
            os.close(answers)
