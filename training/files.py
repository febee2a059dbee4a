"""Files that are replaced whole: written beside their place, then renamed, so a reader sees the old or the new one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what `write` writes in the place of `file`."""
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as out:
        write(out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)


def replace_text(file: Path, text: str) -> None:
    """Put `text` in the place of `file`, in UTF-8."""
    replace_file(file, lambda out: out.write(text.encode()))
