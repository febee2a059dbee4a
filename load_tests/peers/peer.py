"""A server that answers the same as ours, as the benchmark of peers starts and asks it.

    PEER = Peer(name="mosec", title="mosec", source="https://…", tuning="1 process of 2 threads, …", path="/inference",
                ready="/", command=lambda launch: [str(launch.python), "-m", "load_tests.peers.mosec.server", …])

Each lies in a folder of its own, `load_tests/peers/NAME/`: `__init__.py` with `PEER`, `server.py`, and, unless it runs
in the project's environment or names a lock, `requirements.in` and `requirements.txt`. It imports the project's
`serving` for everything but the server (`answering.py`), so that only the servers differ.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.bundle import Precision

Wrap = Callable[[bytes], tuple[bytes, Mapping[str, str]]]
Unwrap = Callable[[bytes], dict[str, Any]]


@dataclass(frozen=True)
class Launch:
    """What a peer is started with.

    Attributes:
        python: of the peer's environment.
        bundle: folder, absolute.
        precision: of its graph.
        port: to listen on, on the loopback address.
        cores: that it may use.
        scratch: an empty folder of its own; the process runs in it.
    """

    python: Path
    bundle: Path
    precision: Precision
    port: int
    cores: int
    scratch: Path


def raw_body(image: bytes) -> tuple[bytes, Mapping[str, str]]:
    """The image's bytes are the request."""
    return image, {}


def module_command(module: str, launch: Launch) -> Sequence[str]:
    """`python -m MODULE BUNDLE PRECISION PORT CORES`: enough for most, see `answering.read_arguments`."""
    given = (launch.bundle, launch.precision, launch.port, launch.cores)
    return [str(launch.python), "-m", module, *map(str, given)]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server and how it is asked.

    Attributes:
        name: of its folder and on the command line.
        title: in tables.
        source: page of its documentation that the tuning follows.
        tuning: in words: processes, threads, batches, and what was tried besides.
        command: starts it, with the project's root as PYTHONPATH, in `Launch.scratch`, in a process group of its own;
            it may first write files there, which is not counted as time to start.
        path: of the URL that images are posted to; `{model}` in it stands for the bundle's name.
        ready: path whose GET is answered with 200 once the model can answer.
        environment: variables beside those of the caller.
        lock: of its packages, from the project's root; None for `requirements.txt` in its folder, if there is one.
        wrap: an image → body and headers of a request.
        unwrap: body of an answer → our answer's JSON.
        variants: other ways to set it up that were tried, by a short name: which attributes are others then.
    """

    name: str
    title: str
    source: str
    tuning: str
    command: Callable[[Launch], Sequence[str]]
    path: str
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)
    lock: Path | None = None
    wrap: Wrap = raw_body
    unwrap: Unwrap = json.loads
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Of its module; a variant's is that of its peer."""
        return self.name.partition(" ")[0]

    def with_variants(self) -> Sequence["Peer"]:
        """This one, and one each for the other ways, `NAME VARIANT`."""
        others = [
            replace(self, name=f"{self.name} {name}", title=f"{self.title}, {name}", tuning=name, **changes)
            for name, changes in self.variants.items()
        ]
        return [self, *others]
