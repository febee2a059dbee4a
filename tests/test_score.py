import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, SIZE, encoded, serving

from serving.batch import score as score_module
from serving.batch.score import score_folder
from serving.errors import BundleError, ServingError
from serving.predictor import Predictor


@pytest.fixture
def folder(images: list[bytes], tmp_path: Path) -> Path:
    """Images in two folders, two that are none, and files that are hidden."""
    root = tmp_path / "images"
    (root / "sub" / ".cache").mkdir(parents=True)
    for name, data in {
        "b.png": images[0],
        "a.png": images[1],
        "broken.png": images[2][:60],
        "notes.txt": b"hello",
        "sub/c.png": images[3],
        ".hidden.png": images[4],
        "sub/.cache/x.png": images[5],
    }.items():
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_rows_are_the_predictors_answers_in_sorted_order(
    runtime: str, folder: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    summary = score_folder(folder, bundle_dir, tmp_path / "out.parquet", runtime=runtime, batch_size=2, progress=False)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()

    assert [row["path"] for row in rows] == ["a.png", "b.png", "broken.png", "notes.txt", "sub/c.png"]
    assert (summary.images, summary.errors) == (5, 2)
    predictor = Predictor.open(bundle_dir, runtime)
    for row in (rows[0], rows[1], rows[4]):
        [answer] = predictor.predict([(folder / row["path"]).read_bytes()])
        assert row["error_code"] is row["error_message"] is None
        assert dict(zip(LABELS, row["probabilities"], strict=True)) == pytest.approx(answer["probabilities"], rel=1e-5)
        for name in ("label", "component"):
            assert row[name] == answer[name]
        for name in ("probability", "component_probability", "log_density"):
            assert row[name] == pytest.approx(answer[name], rel=1e-5)


def test_what_cannot_be_answered_has_its_error_and_nothing_else(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    score_folder(folder, bundle_dir, tmp_path / "out.parquet", progress=False)
    rows = {row["path"]: row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}

    assert rows["broken.png"]["error_code"] == "undecodable_image"
    assert rows["notes.txt"]["error_code"] == "unsupported_image_type"
    assert rows["notes.txt"]["error_message"].startswith("image must be PNG, JPEG or WebP, got bytes that start with")
    filled = {name for name, value in rows["notes.txt"].items() if value is not None}
    assert filled == {"path", "error_code", "error_message"}


def test_the_file_names_its_bundle(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    score_folder(folder, bundle_dir, tmp_path / "new" / "out.parquet", progress=False)
    metadata = pq.read_schema(tmp_path / "new" / "out.parquet").metadata

    assert (metadata[b"bundle"], metadata[b"version"]) == (b"tiny-mda", b"1")
    assert json.loads(metadata[b"labels"]) == list(LABELS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.parquet"]


def test_a_softmax_bundle_leaves_components_and_density_null(folder: Path, softmax_dir: Path, tmp_path: Path) -> None:
    score_folder(folder, softmax_dir, tmp_path / "out.parquet", progress=False)
    row = pq.read_table(tmp_path / "out.parquet").to_pylist()[0]

    assert row["label"] in LABELS
    assert row["component"] is row["component_probability"] is row["log_density"] is None


def test_many_files_are_written_in_groups(bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for level in range(50):
        (tmp_path / "in" / f"{level:02}.png").write_bytes(encoded(np.full((SIZE, SIZE), level, dtype=np.uint8)))
    monkeypatch.setattr(score_module, "ROWS_PER_GROUP", 10)

    score_folder(tmp_path / "in", bundle_dir, tmp_path / "out.parquet", batch_size=4, decode_workers=3, progress=False)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups > 3
    assert file.read().column("path").to_pylist() == [f"{level:02}.png" for level in range(50)]


def test_an_output_inside_the_folder_is_not_scored(folder: Path, bundle_dir: Path) -> None:
    for _ in range(2):
        assert score_folder(folder, bundle_dir, folder / "out.parquet", progress=False).images == 5


def test_a_file_that_cannot_be_read_or_is_too_large(bundle_dir: Path, tmp_path: Path, images: list[bytes]) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "large.png").open("wb") as file:
        file.truncate(11 * 2**20)
    (tmp_path / "in" / "ok.png").write_bytes(images[0])

    score_folder(tmp_path / "in", bundle_dir, tmp_path / "out.parquet", progress=False)
    large, ok = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (large["error_code"], ok["error_code"]) == ("image_too_large", None)
    assert large["error_message"] == "image must have at most 10485760 bytes, got 11534336"


def test_no_folder_no_files_no_bundle(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ServingError, match=r"nowhere must be a folder of images, got nothing there$"):
        score_folder(tmp_path / "nowhere", bundle_dir, tmp_path / "out.parquet")
    with pytest.raises(ServingError, match=r"a.png must be a folder of images, got a file$"):
        score_folder(folder / "a.png", bundle_dir, tmp_path / "out.parquet")
    with pytest.raises(ServingError, match=r"empty must hold at least one file, got none$"):
        score_folder(tmp_path / "empty", bundle_dir, tmp_path / "out.parquet")
    with pytest.raises(BundleError, match=r"bundle\.json must exist"):
        score_folder(folder, tmp_path, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_failure_leaves_no_partial_file(
    folder: Path, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    monkeypatch.setattr(Predictor, "encode", fail)
    with pytest.raises(RuntimeError, match="half way"):
        score_folder(folder, bundle_dir, tmp_path / "new" / "out.parquet", progress=False)
    assert list((tmp_path / "new").iterdir()) == []


def test_the_command_prints_one_line(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    result = serving("score", folder, "--bundle", bundle_dir, "--out", tmp_path / "out.parquet", check=True)

    assert result.stdout.startswith(f"{tmp_path / 'out.parquet'}: 5 images, 2 without an answer, ")
    assert "5/5" in result.stderr
