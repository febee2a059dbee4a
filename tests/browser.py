"""How a real browser shows a page."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
PROBE = """<!doctype html><title>probe</title><body style="margin:0"><pre id="answer"></pre>
<script>
function probe(frame) {{
  const page = frame.contentDocument, root = page.documentElement;
  const parts = [...page.querySelectorAll("h1, h2, p, nav, figcaption, figure, .table, .cards")];
  document.getElementById("answer").textContent = JSON.stringify({{
    width: root.clientWidth,
    scroll: root.scrollWidth,
    over: parts.filter(part => part.getBoundingClientRect().right > root.clientWidth + 1).length,
    widths: [...page.images].map(image => image.naturalWidth),
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  }});
}}
</script>
<iframe onload="probe(this)" style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe>"""


def seen_in_browser(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What becomes of a page in a window of some width, in CSS pixels.

    Returns:
        width and scroll, of the page without and with what must be scrolled to; over, parts that reach beyond it;
        widths of its images, 0 where one is broken; fetched, addresses that it asked for.
    """
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(width=width, page=html.escape(page.read_text(), quote=True)))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom", probe.as_uri(),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'<pre id="answer">(\{.*?\})</pre>', answer)
    if found is None:
        raise RuntimeError(f"the browser must answer what it sees, got {answer[-500:]}")
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen
