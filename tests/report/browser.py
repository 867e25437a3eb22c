"""Runs a page in a real browser, without a driver: a script in the page reports its findings."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["find_browser", "run_in_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WATCH = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
</script>"""
# When frames are there too.
_REPORT = """<script>
addEventListener("load", () => {
  let found;
  try { found = (() => { %s })(); } catch (error) { problems.push(String(error)); }
  const verdict = document.createElement("pre");
  verdict.id = "verdict";
  verdict.textContent = JSON.stringify({ found, problems });
  document.body.append(verdict);
});
</script>"""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome; None where there is none."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


def run_in_browser(page: str, script: str, folder: Path, width: int = 1200) -> Any:
    """Opens a page from disk and runs a script after the page's own.

    Args:
        page (str): the page.
        script (str): body of a function of JavaScript; what it returns must be possible in JSON.
        folder (Path): for files of this call.
        width (int): of the window in pixels.

    Returns:
        Any: what the script returns.

    Raises:
        AssertionError: an error in a script, or anything on the console.
    """
    text = page.replace("<head>", f"<head>{_WATCH}", 1)
    # The last one, since a page in a frame has one too.
    before, end, after = text.rpartition("</body>")
    text = f"{before}{_REPORT % script}{end}{after}"
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [
        find_browser(), "--headless", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
        "--host-resolver-rules=MAP * ~NOTFOUND", path.as_uri(),
    ]  # fmt: skip
    if os.geteuid() == 0:  # as whom it does not run in its sandbox
        command.insert(1, "--no-sandbox")
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'<pre id="verdict">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stderr[-2000:]
    verdict = json.loads(html.unescape(match[1]))
    assert not verdict["problems"] and not console, (verdict["problems"], console)
    return verdict.get("found")
