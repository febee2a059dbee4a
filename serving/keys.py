"""Keys: what a client has to name to be answered, one for inference and one for management.

A key comes from the environment (DISCRIMINANT_INFERENCE_KEY, DISCRIMINANT_MANAGEMENT_KEY) or from a key file, which is
made if it is missing and outlives the server:

    {"inference": "...", "management": "..."}

A key never stands on a command line, in a log or in a worker's environment.
"""

import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from serving.errors import ServerError

INFERENCE_VARIABLE = "DISCRIMINANT_INFERENCE_KEY"
MANAGEMENT_VARIABLE = "DISCRIMINANT_MANAGEMENT_KEY"
KEY_VARIABLES = (INFERENCE_VARIABLE, MANAGEMENT_VARIABLE)
RANDOM_BYTES = 32
KEY = re.compile(r"[A-Za-z0-9._-]{16,128}")
RULE = "16 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-'"


@dataclass(frozen=True)
class Keys:
    """One key for each interface; neither is shown.

    Attributes:
        inference: for requests.
        management: for changes of the server.
    """

    inference: str = field(repr=False)
    management: str = field(repr=False)


def server_keys(key_file: Path, environment: Mapping[str, str]) -> Keys:
    """The keys of a server: those of the environment, and of the file what the environment does not name.

    Args:
        key_file: made, with random keys, if it is needed and missing.
        environment: of the process.

    Raises:
        ServerError: if a key breaks its rule, both are the same, or the file cannot be made or others can read it.
    """
    given = {name: environment[variable] for name, variable in _variables() if variable in environment}
    keys = Keys(**given) if len(given) == len(KEY_VARIABLES) else Keys(**{**_from_file(key_file), **given})
    for name, variable in _variables():
        _check(getattr(keys, name), variable if name in given else f"{name} in {key_file}")
    if keys.inference == keys.management:
        raise ServerError("keys of inference and management must differ, got the same one twice")
    return keys


def client_key(key_file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key that a client names: that of the environment, or else of a key file, or none.

    Raises:
        ServerError: if the key breaks its rule or the file cannot be read.
    """
    if (key := environment.get(INFERENCE_VARIABLE)) is not None:
        return _check(key, INFERENCE_VARIABLE)
    if key_file is None:
        return None
    return _check(_read(key_file).get("inference"), f"inference in {key_file}")


def _variables() -> list[tuple[str, str]]:
    return list(zip((key.name for key in fields(Keys)), KEY_VARIABLES, strict=True))


def _from_file(key_file: Path) -> dict[str, str]:
    if not key_file.exists():
        _write(key_file, Keys(secrets.token_urlsafe(RANDOM_BYTES), secrets.token_urlsafe(RANDOM_BYTES)))
    found = _read(key_file)
    return {key.name: found.get(key.name, "") for key in fields(Keys)}


def _read(key_file: Path) -> dict[str, str]:
    try:
        with key_file.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = json.loads(file.read())
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "something else"  # which may hold a key
        raise ServerError(f'{key_file} must hold {{"inference": KEY, "management": KEY}}, got {reason}') from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ServerError(f"{key_file} must be readable by its owner alone, got mode {mode:o}: chmod 600 {key_file}")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ServerError(f'{key_file} must hold {{"inference": KEY, "management": KEY}}, got something else')
    return content


def _write(key_file: Path, keys: Keys) -> None:
    """Write a key file whole, with mode 0600 from its first moment."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix=f".{key_file.name}.", dir=key_file.parent, delete=False) as file:
            file.write(json.dumps(asdict(keys), indent=2) + "\n")
        Path(file.name).replace(key_file)
    except OSError as exc:
        raise ServerError(f"{key_file} must be a file that can be made, got {exc.strerror}") from exc


def _check(key: str | None, what: str) -> str:
    if key is None or not KEY.fullmatch(key):
        raise ServerError(f"{what} must be a key of {RULE}, got {'none' if key is None else f'{len(key)} characters'}")
    return key
