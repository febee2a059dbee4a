"""The Python of each peer: an environment of its own, made when it is first needed and when its lock has changed.

    python = environment(peer)  # cache/peers/NAME/bin/python, by the folder of its lock

A peer without a lock runs in the project's own environment.
"""

import hashlib
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from load_tests import peers
from load_tests.peers.peer import Peer
from load_tests.peers.running import ROOT, PeerError
from training.files import replace_text

CACHE = ROOT / "cache" / "peers"
LOCK, REQUIREMENTS = "requirements.txt", ".in"  # the latter beside any lock
OF_THE_MODEL = ("numpy", "onnxruntime", "orjson", "pillow", "pydantic")
DIGEST = "lock.sha256"  # of the lock that an environment was made from
PYTHON = "3.11"


def known_peers() -> dict[str, Peer]:
    """Those that have a folder here, by name."""
    names = [module.name for module in pkgutil.iter_modules(peers.__path__) if module.ispkg]
    return {name: importlib.import_module(f"load_tests.peers.{name}").PEER for name in sorted(names)}


def chosen_peers(names: Sequence[str]) -> list[Peer]:
    """Those of the given names, all if there are none.

    Raises:
        PeerError: if there is none of a name.
    """
    known = known_peers()
    if unknown := [name for name in names if name not in known]:
        raise PeerError(f"--peer must be one of {', '.join(known)}, got {unknown[0]}")
    return [known[name] for name in names or known]


def environment(peer: Peer, cache: Path = CACHE) -> Path:
    """The Python of a peer; its environment is made if that is missing or of another lock.

    Raises:
        PeerError: if it cannot be made.
    """
    lock = lock_of(peer)
    return locked_environment(lock, cache / lock.parent.name) if lock.is_file() else Path(sys.executable)


def locked_environment(lock: Path, home: Path, python: str = PYTHON) -> Path:
    """The Python of an environment with the packages of a lock; made if it is missing or of another lock.

    Args:
        lock: hashed requirements.
        home: its folder.
        python: its version, or a Python of this version.

    Raises:
        PeerError: if it cannot be made.
    """
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    made_from = home / DIGEST
    if not made_from.is_file() or made_from.read_text() != digest:
        made_from.unlink(missing_ok=True)
        _uv("venv", "--clear", "--python", python, str(home))
        _uv("pip", "sync", "--compile-bytecode", "--python", str(home), "--require-hashes", str(lock))
        replace_text(made_from, digest)
    return home / "bin" / "python"


def packages(peer: Peer) -> list[str]:
    """What its lock holds of what its requirements name, `name version`, less what the model needs."""
    lock = lock_of(peer)
    if not lock.is_file():
        return []
    named = [re.split(r"[\[<>=]", word)[0] for word in lock.with_suffix(REQUIREMENTS).read_text().split()]
    pins = dict(line.split()[0].split("==") for line in lock.read_text().splitlines() if "==" in line)
    return [f"{name} {pins[name]}" for name in named if name in pins and name not in OF_THE_MODEL]


def lock_of(peer: Peer) -> Path:
    """The lock of a peer's packages, whether it has one or not."""
    return folder_of(peer) / LOCK if peer.lock is None else ROOT / peer.lock


def folder_of(peer: Peer) -> Path:
    """The folder of a peer's module."""
    return Path(__file__).parent / peer.folder


def _uv(*arguments: str) -> None:
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    done = subprocess.run([uv, *arguments, "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"uv {arguments[0]} must succeed, got exit code {done.returncode}:\n{done.stderr[-2000:]}")
