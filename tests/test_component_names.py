"""Names of components: read from a file or a bundle, put into a finished bundle, refused where they are of nothing."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from serving.bundle import Bundle
from serving.errors import BundleError
from training.component_names import (
    components_of,
    name_components,
    names_text,
    read_component_names,
    with_name,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bundle(bundle_dir: Path, tmp_path: Path) -> Path:
    """A bundle of four classes with two components each, to be changed."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))


def test_only_the_manifest_of_a_bundle_is_changed(bundle: Path) -> None:
    label, other = Bundle.load(bundle).manifest.labels[:2]
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}

    named = name_components(bundle, {other: {1: "crossed"}, label: {1: "bold", 0: "plain"}})

    after = {file.name: file.read_bytes() for file in bundle.iterdir()}
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["bundle.json"]
    assert named.manifest.component_names == {label: {0: "plain", 1: "bold"}, other: {1: "crossed"}}
    assert named.manifest == Bundle.load(bundle).manifest


def test_names_are_not_what_weights_are_told_by(bundle: Path) -> None:
    before = Bundle.load(bundle)

    named = name_components(bundle, {before.manifest.labels[0]: {0: "plain"}})

    assert named.digest == before.digest
    assert named.manifest.sha256 == before.manifest.sha256


def test_names_take_the_place_of_all_that_there_were(bundle: Path) -> None:
    label, other = Bundle.load(bundle).manifest.labels[:2]
    name_components(bundle, {label: {0: "plain"}})

    assert name_components(bundle, {other: {0: "bold"}}).manifest.component_names == {other: {0: "bold"}}
    assert name_components(bundle, {}).manifest.component_names == {}


def test_bundle_of_before_there_were_names_becomes_one_that_has_them(make_bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_bundle(schema_version=1), tmp_path / "old"))
    label = Bundle.load(folder).manifest.labels[0]

    named = name_components(folder, {label: {0: "plain"}})

    assert named.manifest.schema_version == 2


def test_one_name_is_given_and_taken_away(bundle: Path) -> None:
    names = {"7": {0: "plain"}}

    assert with_name(names, "7", 1, "crossed") == {"7": {0: "plain", 1: "crossed"}}
    assert with_name(names, "7", 0, "bold") == {"7": {0: "bold"}}
    assert with_name(names, "1", 0, "bold") == {"7": {0: "plain"}, "1": {0: "bold"}}
    assert with_name(names, "7", 0, "") == {"7": {}}
    assert names == {"7": {0: "plain"}}


@pytest.mark.parametrize(
    ("component", "name", "message"),
    [
        (2, "flat", "must name components below 2, got 2 of {label}"),
        (-1, "flat", "must name components below 2, got -1 of {label}"),
        (0, "", "must have names that are a line of 1 to 100 characters, none of them a space at either end, got ''"),
        (0, "x" * 101, "must have names that are a line of 1 to 100 characters"),
        (0, "two\nlines", "must have names that are a line of 1 to 100 characters"),
        (0, " flat", "must have names that are a line of 1 to 100 characters"),
    ],
)
def test_wrong_names_change_nothing(bundle: Path, component: int, name: str, message: str) -> None:
    label, before = Bundle.load(bundle).manifest.labels[0], (bundle / "bundle.json").read_bytes()

    with pytest.raises(ValueError, match=f"^component_names {re.escape(message.format(label=label))}"):
        name_components(bundle, {label: {component: name}})
    assert (bundle / "bundle.json").read_bytes() == before


def test_names_of_classes_that_are_not_there_are_refused(bundle: Path) -> None:
    labels = ", ".join(Bundle.load(bundle).manifest.labels)

    with pytest.raises(ValueError, match=re.escape(f"must name classes of {bundle}, {labels}, got 'sandal'")):
        name_components(bundle, {"sandal": {0: "flat"}})


def test_damaged_bundle_is_not_named(bundle: Path) -> None:
    label = Bundle.load(bundle).manifest.labels[0]
    (bundle / "model.onnx").write_bytes(b"")

    with pytest.raises(BundleError, match=r"model\.onnx must have SHA-256"):
        name_components(bundle, {label: {0: "plain"}})


def test_names_are_read_from_a_bundle(bundle: Path) -> None:
    labels = Bundle.load(bundle).manifest.labels
    name_components(bundle, {labels[0]: {1: "bold"}})

    assert read_component_names(bundle, labels, 2, "another") == {labels[0]: {1: "bold"}}
    with pytest.raises(ValueError, match=f"must name classes of another, x, got '{labels[0]}'"):
        read_component_names(bundle, ["x"], 2, "another")


def test_file_to_fill_in_has_a_line_for_every_component(make_bundle, tmp_path: Path) -> None:
    labels = ("a b", 'say "hi"', "é", "7")
    folder = Path(shutil.copytree(make_bundle(labels=labels), tmp_path / "bundle"))
    manifest = name_components(folder, {'say "hi"': {1: 'in "quotes"'}, "7": {0: "crossed"}}).manifest
    text = names_text(manifest)

    (tmp_path / "names.toml").write_text(text, encoding="utf-8")
    filled_in = text.replace('# 0 = ""', '0 = "new"').replace('# 1 = ""', '1 = "new"')

    again = read_component_names(tmp_path / "names.toml", labels, 2, folder)
    assert {label: names for label, names in again.items() if names} == manifest.component_names
    assert {label: len(names) for label, names in tomllib.loads(filled_in).items()} == dict.fromkeys(labels, 2)
    assert text.startswith('# What the components of tiny-mda 1 show.\n\n["a b"]\n# 0 = ""\n')


def test_head_without_responsibilities_has_no_components_to_name(bundle: Path, softmax_dir: Path) -> None:
    assert components_of(Bundle.load(bundle).manifest) == 2
    assert components_of(Bundle.load(softmax_dir).manifest) == 0


@pytest.mark.parametrize("name", ["mnist-mda", "fashion-mnist-mda-best", "flowers12-mda"])
def test_names_of_committed_bundles_fit_them(name: str) -> None:
    manifest = Bundle.load(ROOT / "model_store" / name / "1").manifest

    names = read_component_names(ROOT / "docs" / "components" / f"{name}.toml", manifest.labels, 3, name)

    assert names
