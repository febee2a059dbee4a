"""wrk, a closed loop: so many connections, each of which asks again as soon as it is answered.

    load = ask(f"{server.url}/predictions/mnist-mda", Path("seven.png"), connections=8, seconds=4)

A slow server slows it down, so its percentiles flatter (see `open_loop.py`); it takes little of the cores itself.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

SCRIPT = """
wrk.method = "POST"
wrk.body = io.open("{image}", "rb"):read("*a")
{headers}
local paths, requests, sent = {{{paths}}}, {{}}, 0
if #paths > 0 then
  request = function()
    sent = sent % #paths + 1
    requests[sent] = requests[sent] or wrk.format(nil, paths[sent])
    return requests[sent]
  end
end
done = function(summary, latency, requests)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  local good = summary.requests - e.status
  local found = {{good, summary.duration, failed, latency:percentile(50), latency:percentile(99)}}
  io.write("\\n[" .. table.concat(found, ", ") .. "]\\n")
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk measured.

    Attributes:
        per_second: answers a second, without what failed.
        p50: median latency, in milliseconds.
        p99: likewise, of the slowest hundredth.
        failed: requests that got no answer, or another status than 2xx or 3xx.
    """

    per_second: float
    p50: float
    p99: float
    failed: int


def ask(
    url: str,
    image: Path,
    connections: int,
    seconds: float,
    headers: Mapping[str, str] = MappingProxyType({}),
    paths: Sequence[str] = (),
) -> Load:
    """Have wrk post a file over and over; to several paths in turn, if some are given, instead of the URL's."""
    lines = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
    quoted = ", ".join(f'"{path}"' for path in paths)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(image=image, headers=lines, paths=quoted))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", script.name, url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    good, microseconds, failed, p50, p99 = json.loads(output.strip().splitlines()[-1])
    return Load(1e6 * good / microseconds, p50 / 1000, p99 / 1000, failed)


def require_wrk() -> None:
    """Refuse to measure without wrk.

    Raises:
        SystemExit: if it is not installed.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("error: wrk must be installed, got none: apt install wrk")
