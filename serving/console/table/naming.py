"""Names of folders and files made of what strangers call their images and classes.

    folder_of("7")                    "7"
    folder_of("n/a")                  "n_a-" and a digest
    file_of("../../etc/passwd", ".png")   "passwd-" and a digest and ".png"

A name is one part of a path, is not hidden, and is no longer than any file system takes. Different keys have different
names, and the same key has the same name again.
"""

import hashlib
import re

from serving.errors import BadParameter, shown

MOST_CHARACTERS = 60  # of a class; 4 bytes each at most, of the 255 that a name may have
KEPT_CHARACTERS = 40  # of a longer or stranger name
DIGEST = 12  # hexadecimal digits: two of a million keys are alike once in five hundred times
IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|webp)$", re.IGNORECASE)
UNUSUAL = re.compile(r"[^\w.-]+")


def check_label(label: str) -> None:
    """Refuse a class whose name cannot be that of a folder.

    Raises:
        BadParameter: which says what it must be.
    """
    if not is_folder_name(label):
        raise BadParameter(
            f"label must be the name of a folder: 1 to {MOST_CHARACTERS} printable characters without a slash that do "
            f"not begin with a dot, nor begin or end with a space, got {shown(label)}"
        )


def is_folder_name(label: str) -> bool:
    """Whether a class can have a folder of its own name."""
    is_one_part = "/" not in label and "\\" not in label and not label.startswith(".")
    return is_one_part and 0 < len(label) <= MOST_CHARACTERS and label.isprintable() and label == label.strip()


def folder_of(label: str) -> str:
    """The folder of a class: its name, or, where no folder can have it, one like it."""
    return label if is_folder_name(label) else f"{_simple(label)}-{_digest(label)}"


def file_of(key: str, suffix: str) -> str:
    """The file of an image: like the last part of its key, with a digest of all of it."""
    name = key.rstrip("/").rpartition("/")[2]
    return f"{_simple(IMAGE_SUFFIX.sub('', name))}-{_digest(key)}{suffix}"


def _simple(text: str) -> str:
    return UNUSUAL.sub("_", text).lstrip(".")[:KEPT_CHARACTERS] or "image"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGEST]
