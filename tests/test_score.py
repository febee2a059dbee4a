"""Scoring offline: what is in a table, what it is refused for, and what it says of itself."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, SIZE, encoded, serving

from serving.batch import progress
from serving.batch.engine import Numbered, Progress
from serving.batch.job import Job
from serving.batch.options import Returned, ScoreOptions
from serving.batch.parts import Done, PartWorker
from serving.batch.places import place_of
from serving.batch.score import Summary, score
from serving.batch.source import Item, Shard, Source, SourceError
from serving.batch.sources import open_source
from serving.batch.store import OutputError, Store
from serving.bundle import Bundle
from serving.client import classify, connect
from serving.errors import BundleError, ServingError
from serving.predictor import Predictor
from serving.torchserve.launch import Server
from serving.torchserve.management import inference_key

FEW = ScoreOptions(batch_size=2, shard_images=3)


class Here:
    """An engine whose one worker is this process, so that a test need not wait for others."""

    def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
        worker = PartWorker(job)
        for number, shard in shards:
            yield worker.score(number, shard, lambda images, errors: None)


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


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Fifty gray images, from black on."""
    root = tmp_path / "many"
    root.mkdir()
    for level in range(50):
        (root / f"{level:02}.png").write_bytes(encoded(np.full((SIZE, SIZE), level, dtype=np.uint8)))
    return root


def scored(images: Path | Source, bundle: Path, out: Path, options: ScoreOptions = FEW, **more: Any) -> Summary:
    source = images if isinstance(images, Source) else open_source(str(images))
    return score(source, bundle, str(out), options, engine=Here(), **more)


def rows_of(table: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return rows


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_rows_are_the_predictors_answers_in_sorted_order(
    runtime: Any, folder: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    options = ScoreOptions(runtime, batch_size=2, returns=(Returned.PROBABILITIES,))
    summary = scored(folder, bundle_dir, tmp_path / "out.parquet", options)
    rows = rows_of(tmp_path / "out.parquet")

    assert [row["key"] for row in rows] == ["a.png", "b.png", "broken.png", "notes.txt", "sub/c.png"]
    assert (summary.figures.images, summary.figures.failed, summary.images) == (5, 2, 5)
    predictor = Predictor.open(bundle_dir, runtime)
    for row in (rows[0], rows[1], rows[4]):
        [answer] = predictor.predict([(folder / row["key"]).read_bytes()])
        assert row["error_code"] is row["error_message"] is None
        assert dict(zip(LABELS, row["probabilities"], strict=True)) == pytest.approx(answer["probabilities"], abs=1e-6)
        for name in ("label", "component"):
            assert row[name] == answer[name]
        for name in ("probability", "component_probability", "log_density"):
            assert row[name] == pytest.approx(answer[name], rel=1e-6)


def test_a_server_answers_the_same(folder: Path, bundle_dir: Path, tmp_path: Path, server: Server, state: Path) -> None:
    everything = ScoreOptions(top_k=3, returns=(Returned.FEATURES, Returned.PROBABILITIES, Returned.RESPONSIBILITIES))
    scored(folder, bundle_dir, tmp_path / "out.parquet", everything)
    rows = rows_of(tmp_path / "out.parquet")

    with connect(server.url, inference_key(state)) as connection:
        answers = [classify(connection, "tiny-mda", (folder / row["key"]).read_bytes(), 3) for row in rows]
    for row, answer in zip(rows, answers, strict=True):
        if "error" in answer:
            assert (row["error_code"], row["error_message"]) == (answer["error"]["code"], answer["error"]["message"])
            continue
        for got, wanted in zip(row["top_k"], answer["top_k"], strict=True):
            assert (got.pop("label"), got.pop("component")) == (wanted.pop("label"), wanted.pop("component"))
            assert got == pytest.approx(wanted, abs=1e-6)
        assert row["log_density"] == pytest.approx(answer["log_density"], rel=1e-6)
        assert row["probabilities"] == pytest.approx(list(answer["probabilities"].values()), abs=1e-6)
        for got, wanted in zip(row["responsibilities"], answer["components"].values(), strict=True):
            assert got == pytest.approx(wanted, abs=1e-6)
    assert sum("error" in answer for answer in answers) == 2


def test_what_held_out_images_say_is_in_the_table_as_a_server_says_it(
    folder: Path, typical_dir: Path, tmp_path: Path, server: Server
) -> None:
    options = ScoreOptions(batch_size=2, shard_images=3, top_k=2, coverage=0.8)
    summary = scored(folder, typical_dir, tmp_path / "out.parquet", options)
    rows = rows_of(tmp_path / "out.parquet")

    with connect(server.url) as connection:
        files = [(folder / row["key"]).read_bytes() for row in rows]
        answers = [classify(connection, "tiny-typical", file, 2, coverage=0.8) for file in files]
    told = [(row, answer) for row, answer in zip(rows, answers, strict=True) if "error" not in answer]
    assert len(told) == 3
    for row, answer in told:
        assert row["typicality"] == pytest.approx(answer["typicality"], rel=1e-6)
        assert (row["flags"], row["labels_at"]) == (answer["flags"], answer["labels_at"]["set"])
        for got, wanted in zip([row, *row["top_k"]], [answer, *answer["top_k"]], strict=True):
            assert (got["component_name"], got["component"]) == (wanted.get("component_name"), wanted["component"])
    assert rows[2]["typicality"] is rows[2]["flags"] is rows[2]["labels_at"] is None
    names = list(rows[0])
    assert names[:5] == ["key", "label", "probability", "component", "component_name"]
    assert names[6:10] == ["log_density", "typicality", "labels_at", "flags"]
    p_values = [row["typicality"] for row, _ in told]
    assert summary.as_json()["mean_typicality"] == pytest.approx(np.mean(p_values), abs=1e-6)
    assert summary.as_json()["atypical_share"] == pytest.approx(np.mean([p < 0.01 for p in p_values]), abs=1e-6)


def test_the_command_shows_what_held_out_images_say(folder: Path, typical_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = serving("score", folder, "--bundle", typical_dir, "--out", out, "--workers", 1, "--coverage", 0.8)

    row = json.loads(out.read_text().splitlines()[0])
    assert result.returncode == 3
    assert "; mean typicality " in result.stdout
    assert " less typical than all but 1 % of them" in result.stdout
    assert set(row["labels_at"]) <= set(LABELS)
    assert row["typicality"] * 400 == pytest.approx(round(row["typicality"] * 400), abs=1e-4)


def test_a_coverage_that_a_bundle_cannot_tell_is_refused_before_anything_is_scored(
    folder: Path, bundle_dir: Path, typical_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ServingError, match=r"^coverage must be left out, as tiny-mda has no held-out images to tell by"
    ):
        scored(folder, bundle_dir, tmp_path / "out.parquet", ScoreOptions(coverage=0.9))
    with pytest.raises(ServingError, match=r"^coverage must be above 0 and at most 0\.9"):
        scored(folder, typical_dir, tmp_path / "out.parquet", ScoreOptions(coverage=0.9999))
    assert not (tmp_path / "out.parquet.parts").exists()


def test_a_bundle_whose_components_got_names_in_between_is_another_job(
    many: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle_dir, tmp_path / "tiny-mda" / "1")
    scored(many, copy, tmp_path / "parts")
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["component_names"] = {"cross": {"0": "upright"}}
    (copy / "bundle.json").write_text(json.dumps(manifest))

    with pytest.raises(OutputError, match=r"bundle\.component_names\.cross\.0 null, got \"upright\""):
        scored(many, copy, tmp_path / "parts")
    assert scored(many, copy, tmp_path / "parts", again=True).images == 50
    assert "component_name" in rows_of(tmp_path / "parts")[0]


def test_what_cannot_be_answered_has_its_error_and_nothing_else(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    scored(folder, bundle_dir, tmp_path / "out.parquet")
    rows = {row["key"]: row for row in rows_of(tmp_path / "out.parquet")}

    assert rows["broken.png"]["error_code"] == "undecodable_image"
    assert rows["notes.txt"]["error_code"] == "unsupported_image_type"
    assert rows["notes.txt"]["error_message"].startswith("image must be PNG, JPEG or WebP, got bytes that start with")
    filled = {name for name, value in rows["notes.txt"].items() if value is not None}
    assert filled == {"key", "error_code", "error_message", "model", "version", "bundle_digest"}


def test_a_table_names_its_bundle_and_its_job(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    scored(folder, bundle_dir, tmp_path / "new" / "out.parquet")
    metadata = pq.read_schema(tmp_path / "new" / "out.parquet").metadata
    digest = Bundle.load(bundle_dir).digest

    assert (metadata[b"bundle"], metadata[b"version"]) == (b"tiny-mda", b"1")
    assert metadata[b"bundle_digest"].decode() == digest
    assert json.loads(metadata[b"labels"]) == list(LABELS)
    job = json.loads(metadata[b"job"])
    assert job["source"] == open_source(str(folder)).description
    assert job["options"]["batch_size"] == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.parquet"]
    row = rows_of(tmp_path / "new" / "out.parquet")[0]
    assert (row["model"], row["version"], row["bundle_digest"]) == ("tiny-mda", 1, digest)


def test_a_softmax_bundle_leaves_components_and_density_null(folder: Path, softmax_dir: Path, tmp_path: Path) -> None:
    summary = scored(folder, softmax_dir, tmp_path / "out.parquet", ScoreOptions(top_k=2))
    row = rows_of(tmp_path / "out.parquet")[0]

    assert row["label"] in LABELS
    assert row["component"] is row["component_probability"] is row["log_density"] is None
    assert [one["component"] for one in row["top_k"]] == [None, None]
    assert summary.as_json()["mean_log_density"] is None


def test_one_file_a_folder_of_parts_and_lines_of_json_hold_the_same(
    many: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    options = ScoreOptions(batch_size=4, shard_images=20, top_k=2, returns=(Returned.RESPONSIBILITIES,))
    for out in ("one.parquet", "parts", "one.jsonl"):
        scored(many, bundle_dir, tmp_path / out, options)
    scored(many, bundle_dir, tmp_path / "lines", options, form="jsonl")

    one = rows_of(tmp_path / "one.parquet")
    assert [row["key"] for row in one] == [f"{level:02}.png" for level in range(50)]
    assert rows_of(tmp_path / "parts") == one
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["_job", "part-0000000.parquet", "part-0000001.parquet", "part-0000002.parquet"]
    lines = (tmp_path / "one.jsonl").read_text().splitlines()
    for row, line in zip(one, lines, strict=True):
        assert json.loads(line)["top_k"][1]["probability"] == pytest.approx(row["top_k"][1]["probability"], rel=1e-7)
        assert np.array(json.loads(line)["responsibilities"]) == pytest.approx(np.array(row["responsibilities"]))
    each = [(tmp_path / "lines" / f"part-{number:07d}.jsonl").read_text() for number in range(3)]
    assert "".join(each).splitlines() == lines


def test_parts_are_in_order_by_name_however_many_they_are(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    job = Job(open_source(str(many)), str(bundle_dir), FEW, Store(place_of(tmp_path)))
    numbers = [0, 9, 10, 99_999, 100_000, 1_000_000, 9_999_999]

    assert sorted(map(job.part_name, numbers)) == [job.part_name(number) for number in numbers]


def test_batches_are_full_until_the_last_of_a_shard(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    for name in ("05.png", "06.png", "49.png"):
        (many / name).write_bytes(b"broken")

    told = scored(many, bundle_dir, tmp_path / "out.parquet", ScoreOptions(batch_size=8, shard_images=50)).as_json()
    assert (told["images"], told["errors"]) == (50, 3)
    assert (told["batches"], told["full_batches"]) == (6, 5)


def test_decoding_ahead_changes_nothing(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    class Ahead(Here):
        def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
            worker = PartWorker(job, decoders=3)
            for number, shard in shards:
                yield worker.score(number, shard, lambda images, errors: None)

    (many / "07.png").write_bytes(b"broken")
    scored(many, bundle_dir, tmp_path / "here.parquet")
    score(open_source(str(many)), bundle_dir, str(tmp_path / "ahead.parquet"), FEW, engine=Ahead())

    assert rows_of(tmp_path / "ahead.parquet") == rows_of(tmp_path / "here.parquet")


def test_the_summary_counts_what_is_in_the_table(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    (many / "07.png").write_bytes(b"broken")
    told = scored(many, bundle_dir, tmp_path / "out.parquet").as_json()
    rows = [row for row in rows_of(tmp_path / "out.parquet") if row["error_code"] is None]

    for label in LABELS:
        each = [sum(row["label"] == label and row["component"] == k for row in rows) for k in range(2)]
        assert told["components"][label] == each
        assert told["classes"][label] == sum(each)
    assert told["error_codes"] == {"unsupported_image_type": 1}
    assert told["mean_log_density"] == pytest.approx(np.mean([row["log_density"] for row in rows]), rel=1e-5)
    assert sum(told["stage_shares"].values()) == pytest.approx(1, abs=0.01)


def test_images_less_dense_than_nearly_all_of_the_bundles_own_are_counted(
    many: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    scored(many, bundle_dir, tmp_path / "out.parquet")
    densities = sorted(row["log_density"] for row in rows_of(tmp_path / "out.parquet"))
    copy = shutil.copytree(bundle_dir, tmp_path / "tiny-mda" / "1")
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["metrics"] = {"log_density_quantiles": {"0.01": (densities[6] + densities[7]) / 2}}
    (copy / "bundle.json").write_text(json.dumps(manifest))

    assert scored(many, copy, tmp_path / "again.parquet").as_json()["atypical_share"] == 7 / 50
    assert scored(many, bundle_dir, tmp_path / "unknown.parquet").as_json()["atypical_share"] is None


def test_a_log_gets_a_line_of_json_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    with progress.shown("lines", 300, before=100, errors_before=2) as tell:
        tell(50, 1)

    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["images"], told["of"], told["errors"]) == ("progress", 150, 300, 3)
    assert told["seconds_left"] >= 0


def test_a_finished_table_is_left_as_it_is(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "one.parquet", tmp_path / "parts"):
        first = scored(many, bundle_dir, out)
        before = {path: path.stat().st_mtime_ns for path in [out, *out.glob("part-*")]}

        second = scored(many, bundle_dir, out)
        assert (first.images, second.images) == (50, 0)
        assert second.figures.assigned == first.figures.assigned
        assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("name", ["one.parquet", "parts"])
def test_another_job_in_the_same_place_is_refused(
    name: str, many: Path, bundle_dir: Path, softmax_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    scored(many, bundle_dir, out)

    with pytest.raises(OutputError, match=r'bundle\.name "tiny-mda", got "tiny-softmax"'):
        scored(many, softmax_dir, out)
    with pytest.raises(OutputError, match=r"options\.batch_size 2, got 7"):
        scored(many, bundle_dir, out, ScoreOptions(batch_size=7, shard_images=3))
    os.utime(many / "00.png", (0, 0))
    with pytest.raises(OutputError, match=r"inputs\.digest \w{12}…, got \w{12}…"):
        scored(many, bundle_dir, out)
    (many / "50.png").write_bytes((many / "00.png").read_bytes())
    with pytest.raises(OutputError, match=r"inputs\.images 50, got 51"):
        scored(many, bundle_dir, out)
    assert scored(many, bundle_dir, out, again=True).images == 51


def test_what_is_no_jobs_is_never_touched(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "rows.jsonl").write_text("{}\n")

    for again in (False, True):
        with pytest.raises(OutputError, match=r"must be a new or empty folder or a job's, got .*mine"):
            scored(many, bundle_dir, tmp_path / "mine", again=again)
    with pytest.raises(OutputError, match=r"must not be there yet, got .*rows\.jsonl: begin anew with --again"):
        scored(many, bundle_dir, tmp_path / "rows.jsonl")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(OutputError, match=r"must not lie among the images"):
        scored(many, bundle_dir, many / "out.parquet")


def test_a_part_that_is_damaged_or_gone_is_scored_again(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    scored(many, bundle_dir, out)
    before = rows_of(out)
    damaged = (out / "part-0000003.parquet").read_bytes()
    (out / "part-0000003.parquet").write_bytes(damaged[:-9] + b"x" + damaged[-8:])
    (out / "part-0000005.parquet").unlink()

    assert scored(many, bundle_dir, out).images == 6
    assert rows_of(out) == before


@dataclass(frozen=True)
class Flaky(Source):
    """Images of a folder, of which those from the sixth on cannot be read while `down` is there."""

    folder: str
    down: str

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "flaky"}

    def shards(self, images: int) -> Iterator[Shard]:
        yield from open_source(self.folder).shards(images)

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        for item in open_source(self.folder).read(shard, max_bytes):
            if item.key >= "06" and Path(self.down).exists():
                raise SourceError("the network is down")
            yield item


def test_a_source_that_breaks_off_keeps_what_is_done(many: Path, bundle_dir: Path, tmp_path: Path) -> None:
    down = tmp_path / "down"
    down.touch()
    source = Flaky(str(many), str(down))

    with pytest.raises(SourceError, match="the network is down"):
        scored(source, bundle_dir, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("part-*"))) == 2
    down.unlink()
    assert scored(source, bundle_dir, tmp_path / "parts").images == 44
    scored(many, bundle_dir, tmp_path / "undisturbed")
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "undisturbed")


def test_a_file_that_is_too_large_is_not_read(bundle_dir: Path, tmp_path: Path, images: list[bytes]) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "large.png").open("wb") as file:
        file.truncate(11 * 2**20)
    (tmp_path / "in" / "ok.png").write_bytes(images[0])

    scored(tmp_path / "in", bundle_dir, tmp_path / "out.parquet")
    large, ok = rows_of(tmp_path / "out.parquet")
    assert (large["error_code"], ok["error_code"]) == ("image_too_large", None)
    assert large["error_message"] == "image must have at most 10485760 bytes, got 11534336"


def test_no_folder_no_files_no_bundle(folder: Path, bundle_dir: Path, softmax_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.parquet"

    for source in ("nowhere", "empty"):
        with pytest.raises(SourceError, match=source):
            scored(tmp_path / source, bundle_dir, out)
    with pytest.raises(BundleError, match=r"bundle\.json must exist"):
        scored(folder, tmp_path, out)
    with pytest.raises(ServingError, match=r"must be an output of tiny-softmax \(posterior, features\), got resp"):
        scored(folder, softmax_dir, out, ScoreOptions(returns=(Returned.RESPONSIBILITIES,)))
    with pytest.raises(OutputError, match=r"out must end in \.jsonl, as the format is jsonl, got .*out\.parquet"):
        scored(folder, bundle_dir, out, form="jsonl")
    assert not out.exists()
    assert not (tmp_path / "out.parquet.parts").exists()


def test_pixels_of_an_array_are_scored_like_their_pngs(bundle_dir: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (6, SIZE, SIZE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    (tmp_path / "in").mkdir()
    for number, image in enumerate(pixels):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(image))

    scored(tmp_path / "images.npy", bundle_dir, tmp_path / "array.parquet")
    scored(tmp_path / "in", bundle_dir, tmp_path / "files.parquet")
    array, files = rows_of(tmp_path / "array.parquet"), rows_of(tmp_path / "files.parquet")
    assert [row["key"] for row in array] == [f"images.npy#{number}" for number in range(6)]
    assert [row | {"key": ""} for row in array] == [row | {"key": ""} for row in files]


def test_the_command_tells_a_person_and_a_program(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    command = ("score", folder, "--bundle", bundle_dir, "--workers", 1)
    person = serving(*command, "--out", tmp_path / "out.parquet")
    program = serving(*command, "--out", tmp_path / "again.parquet", "--json", "--quiet", "--allow-errors", check=True)

    assert person.returncode == 3
    assert person.stdout.startswith(f"{tmp_path / 'out.parquet'}: 5 images, 2 without an answer, ")
    assert "undecodable_image: 1" in person.stdout
    assert "5/5" in person.stderr
    told = json.loads(program.stdout)
    assert (told["event"], told["images"], told["errors"], program.stderr) == ("summary", 5, 2, "")
    for option, engine in (("--nice",), "ray"), (("--ray-address", "auto"), "local"):
        ignored = serving(*command, "--out", tmp_path / "other.parquet", "--engine", engine, *option)
        assert ignored.returncode == 1
        assert f"{option[0]} must be left out with --engine {engine}, which has no such thing" in ignored.stderr
    refused = serving(*command, "--out", tmp_path / "out.parquet", "--top-k", 2)
    assert refused.returncode == 1
    assert "options.top_k 1, got 2. Choose another --out, or begin anew in its place with --again" in refused.stderr
