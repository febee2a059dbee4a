"""The modules of this package that a model in a repository needs, and no others, found by their imports.

copy_code(Path("models/mnist-mda/1"))     # models/mnist-mda/1/serving/...
"""

import ast
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "serving"
ENTRY = "serving.triton.adapter"
MODEL = Path(__file__).with_name("model.py")


def copy_code(version: Path) -> None:
    """Write `model.py` and what it imports of this package into a version's folder."""
    shutil.copyfile(MODEL, version / MODEL.name)
    root = MODEL.parents[2]
    for source in needed().values():
        target = version / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def needed(entry: str = ENTRY) -> dict[str, Path]:
    """The files of a module and of all that it imports of this package, by their modules' names."""
    found: dict[str, Path] = {}
    ahead = [entry]
    while ahead:
        name = ahead.pop()
        source = _source(name)
        if name in found or source is None:
            continue
        found[name] = source
        ahead += [name.rpartition(".")[0], *_imported(source)]
    return found


def _imported(source: Path) -> Iterator[str]:
    """The names of what a file imports; of `from a import b` both a and a.b, one of which is no module."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(name: str) -> Path | None:
    """The file of a module of this package."""
    if name.partition(".")[0] != PACKAGE:
        return None
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # of a.b, if a is a module and no package
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None
