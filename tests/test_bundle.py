import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import Bundle, digest, staged, write_manifest
from serving.errors import BundleError


@pytest.fixture
def copy(bundle_dir: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))


def edit(bundle: Path, **changes: Any) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, **changes}))


def test_a_whole_bundle_loads(bundle_dir: Path) -> None:
    bundle = Bundle.load(str(bundle_dir))

    assert (bundle.manifest.name, bundle.manifest.version) == ("tiny-mda", 1)
    assert bundle.torchscript.is_file()
    assert bundle.onnx().is_file()
    assert bundle.golden().is_file()
    assert set(bundle.manifest.sha256) == {"model.pt", "model.onnx", "golden.npz"}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nothing/bundle\.json must exist: a bundle is a folder <name>/<version>"):
        Bundle.load(tmp_path / "nothing")


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").mkdir()

    with pytest.raises(BundleError, match=r"bundle\.json must be readable, got "):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "golden.npz"])
def test_a_changed_file_is_named(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"!")

    with pytest.raises(
        BundleError, match=rf"{name} must have SHA-256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}: the file was"
    ):
        Bundle.load(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.onnx").unlink()

    with pytest.raises(BundleError, match=r"model\.onnx must exist: bundle\.json lists it"):
        Bundle.load(copy)


def test_a_file_that_is_none_of_a_bundles_is_refused(copy: Path) -> None:
    (copy / "sitecustomize.py").write_text("print('a worker would run this')\n")
    digests = Bundle.load(copy).manifest.sha256 | {"sitecustomize.py": digest(copy / "sitecustomize.py")}
    edit(copy, sha256=digests)

    message = r"bundle\.json must follow .*sha256 must list the bundle's own files alone, got sitecustomize\.py too$"
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_a_file_without_a_digest_is_named(copy: Path) -> None:
    edit(copy, sha256={})

    with pytest.raises(BundleError, match=r"bundle\.json: sha256 must list model\.pt, got \[\]"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 3}, "schema_version: "),
        ({"surprise": 1}, "surprise: "),
        ({"name": "../x"}, "name: "),
        ({"version": 0}, "version: "),
        ({"input": {"channels": 2, "height": 8, "width": 8}}, "input.channels: "),
        ({"labels": ["a", "b"]}, r"labels must be one per class \(4\), got 2"),
        ({"labels": ["a", "a", "b", "c"]}, r"labels must be unique, got \['a', 'a', 'b', 'c'\]"),
        (
            {"outputs": ["posterior", "log_density"]},
            "outputs must be posterior, responsibilities, log_density, typicality_score, features",
        ),
        ({"outputs": ["features", "posterior"]}, "in this order, of which only responsibilities and "),
        ({"outputs": ["features"]}, "got features"),
        (
            {"outputs": ["posterior", "responsibilities", "log_density", "typicality_score", "features"]},
            "typicality_score must be among the outputs if and only if there are held-out images",
        ),
        ({"held_out": {"images": 9, "by": "split"}}, "typicality_score must be among the outputs if and only if "),
        ({"held_out": {"images": 0, "by": "split"}}, "held_out.images: "),
        ({"priors": [0.5, 0.5]}, r"priors must be one per class \(4\), got 2"),
        ({"priors": [0.5, 0.5, 0, 0]}, "priors.2: Input should be greater than 0"),
        ({"component_names": {"dog": {"0": "x"}}}, "component_names must be of the model's labels and "),
        ({"component_names": {"cross": {"2": "x"}}}, "component_names must be of the model's labels and "),
        ({"component_names": {"cross": {"0": ""}}}, "component_names.cross.0: "),
        (
            {"head": {"kind": "no name", "classes": 4, "dim": 3, "components": 2}},
            "head.kind: String should match pattern",
        ),
        ({"sha256": {"../model.pt": "0" * 64}}, "sha256"),
        ({"sha256": {"model.pt": "0"}}, "sha256.model.pt"),
    ],
)
def test_a_manifest_that_breaks_the_schema(copy: Path, changes: dict[str, Any], problem: str) -> None:
    edit(copy, **changes)

    with pytest.raises(BundleError, match=rf"bundle\.json must follow the schema of a bundle, got .*{problem}"):
        Bundle.load(copy)


def test_a_bundle_of_schema_1_loads_and_knows_of_no_held_out_images(copy: Path) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    for name in ("held_out", "priors", "component_names"):
        del manifest[name]
    (copy / "bundle.json").write_text(json.dumps(manifest | {"schema_version": 1}))

    bundle = Bundle.load(copy)
    assert (bundle.manifest.held_out, bundle.manifest.priors, bundle.manifest.component_names) == (None, None, {})
    assert bundle.held_out() is None


def test_held_out_images_have_a_file_for_each_graph(typical_dir: Path) -> None:
    bundle = Bundle.load(typical_dir)

    assert bundle.held_out() == typical_dir / "held_out.npz"
    assert "held_out.npz" in bundle.manifest.sha256
    with pytest.raises(BundleError, match=r"^precision of .* must be float32, got int8: export the bundle with "):
        bundle.held_out("int8")


def test_a_head_of_any_name_may_have_a_density_without_responsibilities(copy: Path) -> None:
    head = {"kind": "student-t", "classes": 4, "dim": 3, "components": 1}
    edit(copy, head=head, outputs=["posterior", "log_density", "features"])

    manifest = Bundle.load(copy).manifest

    assert (manifest.head.kind, manifest.outputs) == ("student-t", ("posterior", "log_density", "features"))


def test_a_manifest_that_is_no_json(copy: Path) -> None:
    (copy / "bundle.json").write_text("{")

    with pytest.raises(BundleError, match=r"bundle\.json must follow the schema of a bundle, got bundle: Invalid JSON"):
        Bundle.load(copy)


def test_labels_beyond_ascii_survive(copy: Path) -> None:
    fields = Bundle.load(copy).manifest.model_dump(exclude={"sha256"})
    (copy / "bundle.json").unlink()

    write_manifest(copy, **{**fields, "labels": ("é", "猫", "ß", "z")})
    assert Bundle.load(copy).manifest.labels == ("é", "猫", "ß", "z")


def test_a_staged_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "name" / "1"
    with staged(target) as stage:
        (stage / "file").write_text("x")
        assert not target.exists()

    assert [path.name for path in target.parent.rglob("*")] == ["1", "file"]


def test_what_was_there_survives_a_replacement_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "name" / "1"
    with staged(target) as stage:
        (stage / "file").write_text("old")
    rename = Path.replace

    def refuse(self: Path, to: Path) -> Path:
        if to == target and (self / "file").read_text() == "new":
            raise OSError("no rename")
        return rename(self, to)

    def write_new() -> None:
        with staged(target, replace=True) as stage:
            (stage / "file").write_text("new")
            monkeypatch.setattr(Path, "replace", refuse)

    with pytest.raises(OSError, match="no rename"):
        write_new()

    assert (target / "file").read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_staged_folder_vanishes_on_failure(tmp_path: Path) -> None:
    def write_half() -> None:
        with staged(tmp_path / "name" / "1") as stage:
            (stage / "file").write_text("x")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_on_request(copy: Path) -> None:
    with pytest.raises(BundleError, match="must not exist yet, got a bundle that is there"), staged(copy):
        pass
    with staged(copy, replace=True) as stage:
        (stage / "file").write_text("x")

    assert [path.name for path in copy.iterdir()] == ["file"]
