"""Marked images as folders to train on: `<marked>/images/<label>/<name>.<ext>`, with the bytes of their source.

    written = write_images(Path("photos-marked"), "photos.parquet", marks.all(), images)
    python -m training train --data photos-marked/images

The folders are written beside their place and renamed, so whoever looks sees the former ones or all of the new. A file
in them, `.written.json`, says which image each is of; folders that hold anything else are left alone. An image that the
source no longer has keeps the file that it had.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.batch.places import partial_name
from serving.batch.source import Item
from serving.batch.summary.images import SIDE
from serving.console.table.images import Images
from serving.console.table.marks import Mark, MarkedError
from serving.console.table.naming import file_of, folder_of
from serving.decode import open_image, read_pixels
from serving.errors import ServingError

FOLDER = "images"
RECORD = ".written.json"
LEFT = f".{FOLDER}.*"  # as `partial_name` names what a console that was killed has left
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}


class Record(BaseModel):
    """What was written: the table's name, and the file of each key."""

    model_config = ConfigDict(extra="forbid")

    table: str
    files: dict[str, str]


@dataclass
class Written:
    """What became of the marked images.

    Attributes:
        labels: images of each class.
        folders: of classes whose folder cannot have their name.
        not_written: why images could not be, by key.
        kept: images whose file is the former one, since their source lacks them.
    """

    labels: Counter[str] = field(default_factory=Counter)
    folders: dict[str, str] = field(default_factory=dict)
    not_written: dict[str, str] = field(default_factory=dict)
    kept: int = 0


class Before(NamedTuple):
    """The files that were written before, by key, and where they are."""

    folder: Path
    files: Mapping[str, str]


def write_images(
    marked: Path, table: str, marks: Mapping[str, Mark], images: Images, tell: Callable[[int], object] = lambda _: None
) -> Written:
    """Write marked images.

    Args:
        marked: the folder that may be written to; nobody else may meanwhile.
        table: name of the table.
        marks: by key.
        images: where they are.
        tell: is called with the number of images that are done.

    Raises:
        ServingError: if none can be written, if something else is in their place, or if source or disk fail; what was
            there stays.
    """
    if not marks:
        raise MarkedError("at least one image must be marked to be written out, got none")
    stage = marked / partial_name(FOLDER)
    try:
        _clear(marked)
        before = _before(marked / FOLDER)
        stage.mkdir(parents=True)
        written, files = _write(stage, before, marks, images, tell)
        (stage / RECORD).write_text(Record(table=table, files=files).model_dump_json(indent=1))
        _exchange(stage, marked / FOLDER)
        return written
    except OSError as exc:
        raise MarkedError(f"{marked.name} must be a folder that can be written to, got {exc.strerror}") from exc
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write(
    stage: Path, before: Before, marks: Mapping[str, Mark], images: Images, tell: Callable[[int], object]
) -> tuple[Written, dict[str, str]]:
    """Write all images; what became of them, and the file of each that could be written."""
    written, files = Written(), dict[str, str]()
    for done, item in enumerate(images.find(marks), 1):
        try:
            files[item.key] = _write_one(stage, item, marks[item.key].label, before, written)
        except ServingError as error:
            written.not_written[item.key] = str(error)
        tell(done)
    if not files:
        why = next(iter(written.not_written.values()))
        raise MarkedError(f"at least one marked image must be readable, got none of {len(marks)}: {why}")
    return written, files


def _write_one(stage: Path, item: Item, label: str, before: Before, written: Written) -> str:
    """Write an image and say where, as a path in the stage."""
    content, suffix = _content(item, before, written)
    folder = folder_of(label)
    if folder != label:
        written.folders[label] = folder
    file = f"{folder}/{file_of(item.key, suffix)}"
    (stage / folder).mkdir(exist_ok=True)
    with (stage / file).open("xb") as out:
        out.write(content)
    written.labels[label] += 1
    return file


def _content(item: Item, before: Before, written: Written) -> tuple[bytes, str]:
    """The bytes of an image and the suffix of its file; pixels that have no file become a PNG."""
    if isinstance(item.image, ServingError):
        if item.key not in before.files:
            raise item.image
        file = before.folder / before.files[item.key]
        written.kept += 1
        return file.read_bytes(), file.suffix
    if isinstance(item.image, bytes):
        opened = open_image(item.image)
        read_pixels(opened, channels=3, wanted=(SIDE, SIDE))  # a file that breaks off is of no use for training
        return item.image, SUFFIXES[opened.kind]
    stream = BytesIO()
    pixels = item.image
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue(), ".png"


def _clear(marked: Path) -> None:
    """Take away what a console has left that was killed; if it was between the former folders and the new, finish."""
    for left in marked.glob(LEFT):
        if (left / RECORD).exists() and not os.path.lexists(marked / FOLDER):
            left.rename(marked / FOLDER)
        else:
            shutil.rmtree(left)


def _before(folder: Path) -> Before:
    """What was written before.

    Raises:
        MarkedError: if there is anything else.
    """
    if not os.path.lexists(folder):
        return Before(folder, {})
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError) as exc:
        raise _foreign(folder, "folders without the console's record") from exc
    there = {
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()
    }
    if foreign := sorted(there - {RECORD, *record.files.values()}):
        raise _foreign(folder, f"{foreign[0][:100]!r} too")
    return Before(folder, {key: file for key, file in record.files.items() if file in there})


def _foreign(folder: Path, found: str) -> MarkedError:
    return MarkedError(
        f"{folder.parent.name}/{folder.name} must hold only what the console has written, got {found}: move it away"
    )


def _exchange(stage: Path, target: Path) -> None:
    """Put the new folders in the place of the former ones."""
    former = target.with_name(partial_name(target.name))
    if target.exists():
        target.rename(former)
    try:
        stage.rename(target)
    except OSError:
        if former.exists():
            former.rename(target)
        raise
    shutil.rmtree(former, ignore_errors=True)
