"""What is changed of TorchServe; that it still serves is what every test of the server shows."""

import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from serving.errors import ServerError
from serving.torchserve import batching


def torchserve_home() -> Path:
    package = find_spec("ts")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).resolve().parents[1]


def test_one_constant_is_another() -> None:
    with zipfile.ZipFile(torchserve_home() / batching.JAR) as jar:
        original = jar.read(batching.CLASS)
    changed = batching.changed_class(torchserve_home())

    differing = [n for n, (one, other) in enumerate(zip(original, changed, strict=True)) if one != other]
    assert len(differing) == 3
    assert re.findall(rb"MI\w+SECONDS", changed) == [b"MICROSECONDS"]


def test_another_torchserve_is_refused(tmp_path: Path) -> None:
    jar = tmp_path / batching.JAR
    jar.parent.mkdir(parents=True)
    with zipfile.ZipFile(jar, "w") as file:
        file.writestr(batching.CLASS, b"other")

    with pytest.raises(ServerError, match=r"must be TorchServe 0\.12\.0's, got another .*: install torchserve=="):
        batching.changed_class(tmp_path)
