"""Keys: where they come from, and what is refused."""

import json
import stat
from pathlib import Path

import pytest

from serving.errors import ServerError
from serving.keys import KEY, Keys, client_key, server_keys

GIVEN = {"DISCRIMINANT_INFERENCE_KEY": "i" * 16, "DISCRIMINANT_MANAGEMENT_KEY": "m" * 128}


def written(folder: Path, content: object, mode: int = 0o600) -> Path:
    file = folder / "keys.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    file.chmod(mode)
    return file


def test_a_missing_file_is_made_once_with_keys_that_nobody_can_guess(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = server_keys(file, {})

    assert server_keys(file, {}) == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"inference": made.inference, "management": made.management}
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]
    for key in (made.inference, made.management):
        assert KEY.fullmatch(key)
        assert len(key) >= 43  # 32 bytes in base64
    assert made.inference != made.management
    assert made != server_keys(tmp_path / "others.json", {})


def test_the_environment_wins_and_needs_no_file(tmp_path: Path) -> None:
    file = written(tmp_path, {"inference": "a" * 20, "management": "b" * 20})

    assert server_keys(tmp_path / "none.json", GIVEN) == Keys("i" * 16, "m" * 128)
    assert not (tmp_path / "none.json").exists()
    assert server_keys(file, {"DISCRIMINANT_MANAGEMENT_KEY": "c" * 20}) == Keys("a" * 20, "c" * 20)


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "keys.json"

    with pytest.raises(ServerError, match=rf"^{file} must be a file that can be made, got No such file or directory$"):
        server_keys(file, {})


def test_keys_are_not_shown() -> None:
    assert repr(Keys("a" * 20, "b" * 20)) == "Keys()"


@pytest.mark.parametrize("key", ["a" * 15, "a" * 129, "a" * 16 + " ", "a" * 16 + "\n", "ä" * 16, ""])
def test_a_key_that_breaks_its_rule_is_refused_without_being_told(key: str, tmp_path: Path) -> None:
    rule = r"must be a key of 16 to 128 characters of A-Z, a-z, 0-9, '\.', '_' and '-', got \d+ characters$"
    file = written(tmp_path, {"inference": "a" * 20, "management": key})

    with pytest.raises(ServerError, match=rf"^DISCRIMINANT_INFERENCE_KEY {rule}"):
        server_keys(file, GIVEN | {"DISCRIMINANT_INFERENCE_KEY": key})
    with pytest.raises(ServerError, match=rf"^management in {file} {rule}"):
        server_keys(file, {})
    with pytest.raises(ServerError, match=rf"^DISCRIMINANT_INFERENCE_KEY {rule}"):
        client_key(None, {"DISCRIMINANT_INFERENCE_KEY": key})


@pytest.mark.parametrize("content", ["{", "[]", '{"inference": 3, "management": ""}'])
def test_a_file_that_holds_something_else_is_refused(content: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)

    with pytest.raises(
        ServerError, match=rf'^{file} must hold {{"inference": KEY, "management": KEY}}, got something else$'
    ):
        server_keys(file, {})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    file = written(tmp_path, {"inference": "a" * 20, "management": "b" * 20}, mode)

    message = rf"^{file} must be readable by its owner alone, got mode {mode:o}: chmod 600 {file}$"
    with pytest.raises(ServerError, match=message):
        server_keys(file, {})
    with pytest.raises(ServerError, match=message):
        client_key(file, {})


def test_the_same_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^keys of inference and management must differ, got the same one twice$"):
        server_keys(written(tmp_path, {"inference": "a" * 20, "management": "a" * 20}), {})


def test_a_client_names_the_key_of_the_environment_or_of_a_file_or_none(tmp_path: Path) -> None:
    file = written(tmp_path, {"inference": "a" * 20})

    assert client_key(None, {}) is None
    assert client_key(file, {}) == "a" * 20
    assert client_key(file, GIVEN) == "i" * 16
    with pytest.raises(ServerError, match=r"none\.json must hold .*, got No such file or directory$"):
        client_key(tmp_path / "none.json", {})
