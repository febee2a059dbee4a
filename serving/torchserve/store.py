"""The model store: a folder of archives, several versions of a model beside each other."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from serving.bundle import NAME_PATTERN
from serving.errors import ServerError
from serving.torchserve.archive import Archive

ARCHIVE_NAME = re.compile(rf"(?P<name>{NAME_PATTERN.strip('^$')})-(?P<version>[1-9]\d*)\.mar")
ASIDE = ".rolled-back"  # behind the name of an archive that no start shall take


def archives(store: Path) -> list[Archive]:
    """All archives of a model store, in order.

    Raises:
        ServerError: if a file there is not named as `package` names it.
    """
    found = []
    for path in store.glob("*.mar"):
        match = ARCHIVE_NAME.fullmatch(path.name)
        if match is None:
            raise ServerError(f"archives in {store} must be named <name>-<version>.mar, got {path.name}")
        found.append(Archive(match["name"], int(match["version"])))
    return sorted(found)


def choose(models: Sequence[str] | None, store: Path) -> tuple[Archive, ...]:
    """The archives that are meant.

    Args:
        models: names, which mean their newest versions, or `name:version`; none means the newest of every model.
        store: folder of the archives.

    Raises:
        ServerError: if there is no archive, or none that is called so.
    """
    found = archives(store)
    if not found:
        raise ServerError(f"{store} must hold a .mar archive, got none: make one with `python -m serving package`")
    known = {str(one): one for one in found} | {one.name: one for one in found}  # by its name, the newest
    for name in models or ():
        if name not in known:
            raise ServerError(f"model must be one of {', '.join(map(str, found))} in {store}, got {name!r}")
    return tuple(dict.fromkeys(known[name] for name in models or [one.name for one in found]))


def publish(made: Path, store: Path) -> None:
    """Put an archive into the store, in place of one of its name."""
    partial = store / f".{made.name}.partial"
    shutil.copyfile(made, partial)
    partial.replace(store / made.name)
    _aside(store / made.name).unlink(missing_ok=True)


def set_aside(store: Path, archive: Archive) -> None:
    """Give an archive another name, if it is there, so that no start takes it for the newest."""
    file = store / archive.file
    if file.exists():
        file.rename(_aside(file))


def is_aside(store: Path, archive: Archive) -> bool:
    """Whether an archive is there by that other name alone."""
    file = store / archive.file
    return _aside(file).exists() and not file.exists()


def _aside(file: Path) -> Path:
    return file.with_name(file.name + ASIDE)
