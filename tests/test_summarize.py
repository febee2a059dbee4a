"""The page about a table of scores: its figures by hand, what it refuses, what it shows and how a browser does."""

import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, seen_in_browser
from conftest import LABELS, ROOT, encoded, serving, with_int8
from PIL import Image
from scipy.stats import chi2

from serving.batch.places import place_of
from serving.batch.source import Item, Shard, Source, SourceError, UnreadableFile
from serving.batch.summary import table as table_module
from serving.batch.summary.density import DensityTally
from serving.batch.summary.images import thumbnail, thumbnails
from serving.batch.summary.occupancy import by_chance, cohens_w, compare
from serving.batch.summary.table import TableError, open_table
from serving.batch.summary.write import default_page, figures_as_json, write_summary
from serving.bundle import Bundle, write_manifest
from serving.errors import ServingError
from serving.limits import Limits
from serving.parameters import Options
from serving.predictor import Predictor

EVIL = "<script>alert(1)</script>"
QUANTILES = {"0.01": -9.0, "0.5": -6.0, "0.99": -5.0}
OCCUPANCY = [[0.5, 0.5], [0.9, 0.1], [0.25, 0.75], [1.0, 0.0]]

CANDIDATE = [
    ("label", pa.string()),
    ("probability", pa.float32()),
    ("component", pa.int32()),
    ("component_probability", pa.float32()),
]
SCHEMA = pa.schema(  # of a table that `score --top-k 2 --return probabilities` writes
    [
        ("key", pa.string()),
        *CANDIDATE,
        ("log_density", pa.float32()),
        ("top_k", pa.list_(pa.struct(CANDIDATE))),
        ("probabilities", pa.list_(pa.float32())),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("version", pa.int32()),
        ("bundle_digest", pa.string()),
    ]
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Memory(Source):
    """Images by their keys."""

    images: tuple[tuple[str, bytes], ...]
    broken: bool = False

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def shards(self, images: int) -> Iterator[Shard]:
        if self.broken:
            raise SourceError("memory must be there, got nothing")
        yield Shard({}, "", len(self.images))

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        for key, image in self.images:
            yield Item(key, image if image else UnreadableFile(f"{key} must be readable, got nothing"))


def measured(bundle: Path, target: Path, metrics: dict[str, Any], **fields: Any) -> Path:
    """A copy of a bundle that says how it was on its test split."""
    shutil.copytree(bundle, target)
    manifest = Bundle.load(bundle).manifest.model_dump(exclude={"sha256"})
    (target / "bundle.json").unlink()
    write_manifest(target, **manifest | {"metrics": metrics} | fields)
    return target


def noise(count: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.1, 1, count)
    return [encoded((rng.integers(0, 256, (8, 8)) * scale).astype(np.uint8)) for scale in scales]


def answered_rows(bundle: Path, images: Sequence[bytes], keys: Sequence[str], top_k: int = 2) -> list[Row]:
    """Rows of real answers."""
    predictor = Predictor.open(bundle)
    pixels = np.stack([predictor.decode(image) for image in images])
    options = [Options(top_k=top_k, returns=frozenset({"probabilities"}))] * len(images)
    answers = predictor.encode(predictor.infer(pixels), options)
    names = ("label", "probability", "component", "component_probability", "log_density", "top_k")
    return [
        {"key": key, **{name: answer.get(name) for name in names}}
        | {"probabilities": list(answer["probabilities"].values()), **origin(bundle)}
        for key, answer in zip(keys, answers, strict=True)
    ]


def error_row(bundle: Path, key: str, code: str = "undecodable_image", message: str = "broken") -> Row:
    return {"key": key, "error_code": code, "error_message": message, **origin(bundle)}


def origin(bundle: Path) -> Row:
    manifest = json.loads((bundle / "bundle.json").read_text())
    digest = hashlib.sha256(json.dumps(manifest["sha256"], sort_keys=True).encode()).hexdigest()
    return {"model": manifest["name"], "version": manifest["version"], "bundle_digest": digest}


def write_parquet(
    file: Path, rows: Sequence[Row], job: dict[str, Any] | None = None, schema: pa.Schema = SCHEMA
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"job": json.dumps(job)} if job else None
    table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata(metadata))
    pq.write_table(table, file, compression="zstd")
    return file


def write_jsonl(file: Path, rows: Sequence[Row]) -> Path:
    complete = [{name: row.get(name) for name in SCHEMA.names} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in complete))
    return file


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture bundle with what it measured on its test split; read only."""
    metrics = {"images": 400, "log_density": -5.2, "log_density_quantiles": QUANTILES, "occupancy": OCCUPANCY}
    return measured(bundle_dir, tmp_path_factory.mktemp("measured") / "1", metrics)


@pytest.fixture(scope="module")
def pictures() -> tuple[tuple[str, bytes], ...]:
    """Sixty images by their keys."""
    return tuple((f"{number:02}.png", image) for number, image in enumerate(noise(60, 5)))


@pytest.fixture(scope="module")
def rows(bundle: Path, pictures: tuple[tuple[str, bytes], ...]) -> list[Row]:
    """Their rows, with two of unreadable ones in between; read only."""
    keys, images = zip(*pictures, strict=True)
    found = answered_rows(bundle, images, keys)
    found.insert(3, error_row(bundle, EVIL, message="image must be whole, got <b>"))
    found.insert(30, error_row(bundle, "big.png", "image_too_large", "image must be small, got a large one"))
    return found


@pytest.fixture(scope="module")
def table(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of these; read only."""
    return write_parquet(tmp_path_factory.mktemp("table") / "answers.parquet", rows)


def figures_in(table: str | Path, bundle: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(figures_as_json(table, bundle))
    return figures


def answered(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "error_code" not in row]


class Outline(HTMLParser):
    """Tags, addresses and words of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.words = ""
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        self.addresses += [value for name, value in found.items() if name in ("src", "href", "srcset", "action")]
        self.alts += [found.get("alt", "")] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def page_of(table: Path, bundle: Path, out: Path, **options: Any) -> Outline:
    return Outline(write_summary(table, bundle, out, **options).read_text())


# Figures


def test_errors_and_classes_are_counted(table: Path, bundle: Path, rows: list[Row]) -> None:
    figures, answers = figures_in(table, bundle), answered(rows)

    assert (figures["rows"], figures["answered"]) == (62, 60)
    assert (figures["model"], figures["version"]) == ("tiny-mda", 1)
    assert figures["bundle_digest"] == origin(bundle)["bundle_digest"]
    assert figures["errors"] == [
        {"code": "undecodable_image", "images": 1, "examples": [[EVIL, "image must be whole, got <b>"]]},
        {"code": "image_too_large", "images": 1, "examples": [["big.png", "image must be small, got a large one"]]},
    ]
    assert [one["label"] for one in figures["classes"]] == list(LABELS)
    assert sum(one["images"] for one in figures["classes"]) == 60
    for one in figures["classes"]:
        own = [row["probability"] for row in answers if row["label"] == one["label"]]
        assert one["images"] == len(own)
        assert one["share"] == len(own) / 60
        assert one["mean_probability"] == (pytest.approx(sum(own) / len(own), rel=1e-6) if own else None)


def test_confidence_is_counted_in_bins_and_below_bounds(table: Path, bundle: Path, rows: list[Row]) -> None:
    confidence, values = figures_in(table, bundle)["confidence"], [row["probability"] for row in answered(rows)]

    assert confidence["mean"] == pytest.approx(sum(values) / 60, rel=1e-6)
    assert confidence["below"] == {bound: sum(v < float(bound) for v in values) / 60 for bound in ("0.5", "0.9")}
    assert confidence["counts"] == [sum(int(v * 50) == number for v in values) for number in range(50)]
    assert 0 < confidence["below"]["0.5"] < confidence["below"]["0.9"] < 1


def test_density_is_compared_with_the_quantiles_of_the_bundle(table: Path, bundle: Path, rows: list[Row]) -> None:
    density, values = figures_in(table, bundle)["density"], [row["log_density"] for row in answered(rows)]
    typicality = density["typicality"]

    assert density["mean"] == pytest.approx(sum(values) / 60, rel=1e-6)
    assert density["split_mean"] == -5.2
    assert typicality["quantiles"] == [
        {"share": float(share), "log_density": value, "found": sum(v < value for v in values) / 60}
        for share, value in QUANTILES.items()
    ]
    assert typicality["atypical"] == sum(v < -9 for v in values) / 60 > 0
    assert typicality["above"] == sum(v > -5.0 for v in values) / 60 > 0
    assert typicality["expected"] == 0.01
    histogram = typicality["histogram"]
    edges = [-np.inf, *histogram["edges"][1:-1], np.inf]
    assert histogram["counts"] == np.histogram(values, edges)[0].tolist()
    assert histogram["beyond_left"] == sum(v < histogram["edges"][0] for v in values)


def test_typicality_is_counted_in_tenths(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    field = pa.field("typicality", pa.float64())
    shares = [n / 400 for n in (1, 2, 3, 4, 40, 41, 80, 400)]
    answers = [row | {"typicality": share} for row, share in zip(answered(rows), shares, strict=False)]
    table = write_parquet(tmp_path / "answers.parquet", answers, schema=SCHEMA.append(field))

    found = figures_in(table, bundle)["typicality"]
    assert found == {"tenths": [5 / 8, 2 / 8, *[0] * 7, 1 / 8], "atypical": 3 / 8, "expected": 0.01}
    words = page_of(table, bundle, tmp_path / "page.html", images=False).words
    assert "37.5 % of the images are below 0.01 and called atypical" in words


def test_table_without_typicality_says_nothing_of_it(table: Path, bundle: Path, tmp_path: Path) -> None:
    assert figures_in(table, bundle)["typicality"] is None
    assert "typicality" not in page_of(table, bundle, tmp_path / "page.html", images=False).ids


def test_histogram_of_densities_is_readable_whatever_they_are() -> None:
    tally = DensityTally.of({"0.01": 0.0, "0.5": 20.0, "0.99": 40.0})
    assert tally is not None
    tally.add(np.array([-1e30] + [-1000.0] * 500 + [10.5] * 499))

    histogram = tally.histogram()

    assert sum(histogram.counts) == 1000
    assert 60 <= len(histogram.counts) <= 90
    assert (histogram.beyond_left, histogram.beyond_right) == (1, 0)
    assert histogram.counts[0] == 501
    assert histogram.edges[0] <= -1000 < 40 <= histogram.edges[-1]
    [bar] = [number for number, count in enumerate(histogram.counts) if count == 499]
    assert histogram.edges[bar] <= 10.5 < histogram.edges[bar + 1]


def test_occupancy_is_compared_by_cohens_w(table: Path, bundle: Path, rows: list[Row]) -> None:
    occupancy = figures_in(table, bundle)["occupancy"]

    assert [one["label"] for one in occupancy] == list(LABELS)
    for one, expected in zip(occupancy, OCCUPANCY, strict=True):
        own = [row["component"] for row in answered(rows) if row["label"] == one["label"]]
        assert one["images"] == len(own)
        assert one["expected"] == expected
        if own:
            found = [own.count(k) / len(own) for k in range(2)]
            assert one["found"] == found
        if own and 0 not in expected:
            squares = [(p - q) ** 2 / q for p, q in zip(found, expected, strict=True)]
            assert one["cohens_w"] == pytest.approx(sum(squares) ** 0.5)


@pytest.mark.parametrize(
    ("counts", "expected", "w", "effect"),
    [
        ([500, 500], [0.5, 0.5], 0.0, "within chance"),
        ([530_000, 470_000], [0.5, 0.5], 0.06, "less than small"),
        ([600_000, 400_000], [0.5, 0.5], 0.2, "small"),
        ([7000, 3000], [0.5, 0.5], 0.4, "medium"),
        ([800, 200], [0.5, 0.5], 0.6, "large"),
        ([3, 6], [0.5, 0.5], 1 / 3, "too few images to tell"),  # fewer than five a component
        ([15, 10], [0.5, 0.5], 0.2, "too few images to tell"),  # chance alone makes as much
        ([900, 100], [1.0, 0.0], None, "a component that had no test image"),
        ([1000, 0], [1.0, 0.0], 0.0, "within chance"),
    ],
)
def test_effect_of_a_change_is_put_in_words(counts: list[int], expected: list[float], w: float, effect: str) -> None:
    compared = compare("seven", np.array(counts), expected, split_images=100_000)

    assert compared.cohens_w == (None if w is None else pytest.approx(w))
    assert compared.effect == effect


def test_class_without_images_has_no_effect() -> None:
    compared = compare("seven", np.zeros(2, np.int64), [0.5, 0.5], split_images=100)

    assert (compared.found, compared.cohens_w, compared.by_chance) == (None, None, None)
    assert compared.effect == "too few images to tell"


@pytest.mark.parametrize("components", [2, 3, 8, 32])
def test_chance_is_that_of_chi_squared(components: int) -> None:
    quantile = chi2(components - 1).ppf(0.95)

    assert by_chance(components, 500, 0) == pytest.approx((quantile / 500) ** 0.5, rel=0.015)
    assert by_chance(components, 500, 500) == pytest.approx((2 * quantile / 500) ** 0.5, rel=0.015)


def test_chance_is_exceeded_by_one_in_twenty_samples() -> None:
    rng, shares = np.random.default_rng(1), np.array([0.5, 0.3, 0.2])
    here, split = rng.multinomial(300, shares, 2000) / 300, rng.multinomial(600, shares, 2000) / 600

    exceeding = np.mean([cohens_w(p, q) > by_chance(3, 300, 600) for p, q in zip(here, split, strict=True)])

    assert 0.03 < exceeding < 0.07


def test_lists_name_the_lowest_densities_and_the_least_margins(table: Path, bundle: Path, rows: list[Row]) -> None:
    figures, answers = figures_in(table, bundle), answered(rows)
    margins = {row["key"]: row["top_k"][0]["probability"] - row["top_k"][1]["probability"] for row in answers}

    assert [row["key"] for row in figures["least_typical"]] == [
        row["key"] for row in sorted(answers, key=lambda row: row["log_density"])[:24]
    ]
    assert [row["key"] for row in figures["closest_to_a_tie"]] == sorted(margins, key=lambda key: margins[key])[:24]
    assert figures["by_margin"]
    first, answer = figures["least_typical"][0], min(answers, key=lambda row: row["log_density"])
    for name in ("probability", "log_density"):
        assert first[name] == pytest.approx(answer[name], rel=1e-6)
    assert (first["label"], first["component"]) == (answer["label"], answer["component"])
    assert first["margin"] == pytest.approx(margins[first["key"]], abs=1e-6)


def test_without_a_second_class_the_lowest_probabilities_are_listed(
    bundle: Path, rows: list[Row], tmp_path: Path
) -> None:
    plain = pa.schema([field for field in SCHEMA if field.name not in ("top_k", "probabilities")])
    table = write_parquet(tmp_path / "plain.parquet", rows, schema=plain)

    figures = figures_in(table, bundle)

    assert not figures["by_margin"]
    assert [row["key"] for row in figures["closest_to_a_tie"]] == [
        row["key"] for row in sorted(answered(rows), key=lambda row: row["probability"])[:24]
    ]
    words = page_of(table, bundle, tmp_path / "page.html", images=False).words
    assert "The images whose likeliest class has the lowest probability" in words


def test_least_typical_of_equals_are_the_first(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    same = [row | {"log_density": -4.0, "key": f"{number:03}"} for number, row in enumerate(answered(rows) * 2)]
    table = write_parquet(tmp_path / "same.parquet", same)

    assert [row["key"] for row in figures_in(table, bundle)["least_typical"]] == [f"{n:03}" for n in range(24)]


# The table


def test_table_is_read_in_batches_and_the_figures_are_the_same(
    table: Path, bundle: Path, tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = figures_in(table, bundle)
    lines = write_jsonl(tmp_path / "answers.jsonl", rows)
    monkeypatch.setattr(table_module, "ROWS", 7)
    monkeypatch.setattr(table_module, "BLOCK_BYTES", 4096)

    sizes = [len(batch) for batch in open_table(table).batches()]
    bytes_read = [batch.nbytes for batch in open_table(lines).batches()]

    assert sizes == [7] * 8 + [6]
    assert len(bytes_read) > 5
    assert max(bytes_read) < 8192
    assert approximately(figures_in(table, bundle)) == approximately(whole)
    assert approximately(figures_in(lines, bundle), "table") == approximately(whole, "table")


def approximately(figures: dict[str, Any], *without: str) -> Any:
    """Sums in another order differ in their last digits."""
    kept = {name: value for name, value in figures.items() if name not in without}
    return json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.10g}"))


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_folder_of_parts_is_one_table(
    write: Callable[[Path, Sequence[Row]], Path], table: Path, bundle: Path, rows: list[Row], tmp_path: Path
) -> None:
    suffix = "parquet" if write is write_parquet else "jsonl"
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(3):
        write(folder / f"part-0000{number}.{suffix}", rows[30 * number : 30 * (number + 1)])
    for other in (f"_job.{suffix}", f".part-00003.{suffix}", "_done.json"):
        (folder / other).write_text("no part")

    figures = figures_in(folder, bundle)

    assert approximately(figures, "table") == approximately(figures_in(table, bundle), "table")
    assert figures["table"] == str(folder)


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_parts_of_an_unfinished_job_are_said_to_be_so(
    write: Callable[[Path, Sequence[Row]], Path], bundle: Path, rows: list[Row], tmp_path: Path
) -> None:
    job = {"source": {"kind": "folder", "place": "/gone"}, "options": {"top_k": 2}, "inputs": {"shards": 3}}
    (tmp_path / "parts" / "_job").mkdir(parents=True)
    (tmp_path / "parts" / "_job" / "job.json").write_text(json.dumps(job))
    write(tmp_path / "parts" / f"part-00001.{'parquet' if write is write_parquet else 'jsonl'}", rows)

    figures = figures_in(tmp_path / "parts", bundle)
    outline = page_of(tmp_path / "parts", bundle, tmp_path / "page.html", images=False)

    assert (figures["missing_parts"], figures["source"]) == (2, job["source"])
    assert "The job is not finished: 2 parts of the table are missing." in outline.words


def test_job_that_cannot_be_read_is_refused(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "answers.parquet", rows, {"source": "everywhere"})

    with pytest.raises(TableError, match=r"answers.parquet must say what job made the table, got source: Input"):
        figures_as_json(table, bundle)


def test_densities_of_a_variant_come_with_its_shift(
    bundle: Path, rows: list[Row], tmp_path: Path, bundle_dir: Path
) -> None:
    metrics = Bundle.load(bundle).manifest.metrics
    cost = {"split": "test", "images": 400, "accuracy": (1, 1), "nll": (0, 0), "ece": (0, 0), "agreement": 1}
    variant = {"accuracy": 1, "test": cost | {"density_shift": {"0.5": -0.25}}}
    graphs = with_int8(bundle_dir, tmp_path / "int8")
    int8 = measured(graphs, tmp_path / "1", metrics, variants={"int8": variant})
    own = [row | origin(int8) for row in rows]
    table = write_parquet(tmp_path / "int8.parquet", own, {"options": {"precision": "int8"}})
    plain = write_parquet(tmp_path / "plain.parquet", own, {"options": {"precision": "float32"}})

    words = page_of(table, int8, tmp_path / "page.html", images=False).words

    assert "The images were scored in int8, the quantiles are of the float32 graph." in words
    assert "by these nats, quantiles by their shares: -0.25 at 50 %." in words
    assert "scored in" not in page_of(plain, int8, tmp_path / "page.html", images=False).words.partition("Density")[2]


def test_table_by_url_is_read_where_it_is(
    table: Path, bundle: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = write_jsonl(tmp_path / "part.jsonl", rows).read_bytes()
    place_of("memory://tables/one.parquet").write(lambda out: out.write(table.read_bytes()))
    place_of("memory://tables/many/part-00000.jsonl").write(lambda out: out.write(lines))
    place_of("memory://tables/many/_job/job.json").write(lambda out: out.write(b'{"inputs": {"shards": 2}}'))

    one = figures_in("memory://tables/one.parquet", bundle)
    many = figures_in("memory://tables/many", bundle)
    page = write_summary("memory://tables/many", bundle, images=False)

    assert one == figures_in(table, bundle) | {"table": "memory://tables/one.parquet"}
    assert approximately(many, "table", "missing_parts") == approximately(one, "table", "missing_parts")
    assert many["missing_parts"] == 1
    assert page.resolve() == tmp_path / "many.html"


def test_table_of_another_bundle_is_refused(table: Path, softmax_dir: Path, bundle: Path) -> None:
    mine, others = origin(softmax_dir)["bundle_digest"], origin(bundle)["bundle_digest"]

    with pytest.raises(TableError, match=rf"digest {mine}, got one of {others}: name the bundle that scored the table"):
        figures_as_json(table, softmax_dir)


def test_table_of_several_bundles_is_refused(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "two.parquet", [*rows, rows[0] | {"bundle_digest": "f" * 64}])
    nobody = write_parquet(tmp_path / "nobody.parquet", [*rows, rows[0] | {"bundle_digest": None}])

    with pytest.raises(TableError, match=rf"digest {origin(bundle)['bundle_digest']}, got one of {'f' * 64}: "):
        figures_as_json(table, bundle)
    with pytest.raises(TableError, match="got one of no bundle: "):
        figures_as_json(nobody, bundle)


def test_what_is_no_table_is_refused(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    empty = write_parquet(tmp_path / "empty.parquet", [])
    write_parquet(tmp_path / "both" / "part-00000.parquet", rows)
    write_jsonl(tmp_path / "both" / "part-00001.jsonl", rows)
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" * 10)
    (tmp_path / "broken.jsonl").write_text('{"key": "a"')
    (tmp_path / "empty.jsonl").write_text("")
    pq.write_table(pa.table({"key": ["a"], "label": ["circle"]}), tmp_path / "other.parquet")
    refusals = {
        empty: "empty.parquet must have at least one row, got none: score something first",
        tmp_path / "empty.jsonl": "empty.jsonl must have at least one row, got none",
        tmp_path
        / "both": "both must be a .parquet or .jsonl file or a folder of such parts, got both kinds: name what",
        tmp_path / "none": "none must be a .parquet or .jsonl file or a folder of such parts, got none: name",
        tmp_path / "gone": "gone must be a .parquet or .jsonl file or a folder of such parts, got nothing there",
        tmp_path / "notes.txt": "folder of such parts, got another file: name what `score --out` has written",
        tmp_path / "broken.parquet": "broken.parquet must be a whole part of a table, got .*: score it again",
        tmp_path / "broken.jsonl": "broken.jsonl must be a whole part of a table, got .*: score it again",
        tmp_path
        / "other.parquet": "must have the columns of a table of scores, got none named probability, component,",
    }

    for table, message in refusals.items():
        with pytest.raises(TableError, match=message):
            figures_as_json(table, bundle)


def test_answers_that_the_bundle_cannot_have_given_are_refused(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    refusals = {
        "label must be one of the bundle's, got 'square': is the table damaged": {"label": "square"},
        "key must be in all rows, got 1 without: is the table damaged": {"key": None},
        "probability must be in all answers, got 1 without": {"probability": None},
        "component must be below 2, as the bundle has it, got 2": {"component": 2},
        "log_density must be a finite number or null, got others": {"log_density": float("nan")},
        "probability must be a finite number or null, got others": {"probability": float("inf")},
    }

    for message, change in refusals.items():
        table = write_parquet(tmp_path / "changed.parquet", [rows[0] | change])
        with pytest.raises(TableError, match=message):
            figures_as_json(table, bundle)


# The page


def test_page_needs_nothing_from_elsewhere_and_runs_nothing(
    table: Path, bundle: Path, pictures: tuple[tuple[str, bytes], ...], tmp_path: Path
) -> None:
    page = write_summary(table, bundle, tmp_path / "page.html", source=Memory(pictures))
    text = page.read_text()
    outline = Outline(text)

    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert not re.search(r"url\(|@import|<script|<iframe|https?://|javascript:| on\w+=", text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert {address[1:] for address in outline.addresses if address.startswith("#")} == outline.ids
    assert outline.tags.count("h2") == 7
    assert all(outline.alts)
    assert outline.tags.count("img") == 3 + 48
    assert outline.tags.count("source") == 3  # the charts once more, for dark pages
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_page_says_what_the_figures_are(table: Path, bundle: Path, tmp_path: Path) -> None:
    figures = figures_in(table, bundle)
    typicality = figures["density"]["typicality"]

    words = page_of(table, bundle, tmp_path / "page.html", images=False).words

    assert "62 images, scored by tiny-mda, version 1." in words
    assert figures["bundle_digest"] in words
    assert "big.png: image must be small, got a large one" in words
    assert "1 of 4 classes have no image: cross." in words
    assert f"{100 * figures['confidence']['below']['0.9']:.1f} % of the images are below 0.9" in words
    assert f"The share of atypical images is {100 * typicality['atypical']:.1f} %, where 1.0 % is expected" in words
    assert "Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988" in words
    assert "0.1 is a small effect, 0.3 a medium and 0.5 a large one" in words
    assert "No images are shown: they were not asked for." in words


def test_keys_messages_and_labels_are_text(bundle: Path, rows: list[Row], tmp_path: Path) -> None:
    images = tuple((f"{number}{EVIL}", image) for number, image in enumerate(noise(5, 1)))
    keys = [key for key, _ in images]
    table = write_parquet(
        tmp_path / "answers.parquet",
        [*answered_rows(bundle, [image for _, image in images], keys), error_row(bundle, EVIL, EVIL, EVIL)],
    )

    seen = page_of(table, bundle, tmp_path / "seen.html", source=Memory(images))
    listed = page_of(table, bundle, tmp_path / "listed.html", images=False)

    for outline in (seen, listed):
        assert "script" not in outline.tags
        assert all(key in outline.words for key in keys)
        assert f"{EVIL}: {EVIL}" in outline.words


def test_table_of_errors_alone_has_a_page(bundle: Path, tmp_path: Path) -> None:
    errors = [error_row(bundle, f"{number}.png", message=f"broken at {number // 2}") for number in range(8)]
    table = write_parquet(tmp_path / "errors.parquet", errors)

    figures = figures_in(table, bundle)
    outline = page_of(table, bundle, tmp_path / "page.html")

    assert (figures["rows"], figures["answered"], figures["confidence"], figures["density"]) == (8, 0, None, None)
    assert figures["errors"][0]["images"] == 8
    assert figures["errors"][0]["examples"] == [[f"{2 * n}.png", f"broken at {n}"] for n in range(3)]
    assert "No image has an answer, so there is nothing more to show." in outline.words
    assert outline.tags.count("h2") == 1


def test_softmax_table_leaves_out_density_and_components(softmax_dir: Path, tmp_path: Path) -> None:
    keys = [f"{number}.png" for number in range(6)]
    table = write_parquet(tmp_path / "softmax.parquet", answered_rows(softmax_dir, noise(6, 2), keys))

    figures = figures_in(table, softmax_dir)
    outline = page_of(table, softmax_dir, tmp_path / "page.html")

    assert (figures["density"], figures["occupancy"], figures["least_typical"]) == (None, None, [])
    assert len(figures["closest_to_a_tie"]) == 6
    assert "tiny-softmax has no density, so it cannot say how typical an image is." in outline.words
    assert "tiny-softmax has one component a class or none" in outline.words
    assert "Least typical images" not in outline.words


def test_bundle_that_does_not_say_what_is_usual_is_told_so(bundle_dir: Path, tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "answers.parquet", answered_rows(bundle_dir, noise(2, 2), ["a", "b"]))

    figures = figures_in(table, bundle_dir)
    outline = page_of(table, bundle_dir, tmp_path / "page.html", images=False)

    assert figures["density"]["typicality"] is figures["occupancy"] is None
    assert (
        f"The mean log-density is {figures['density']['mean']:.2f} nats. The bundle has no quantiles" in outline.words
    )
    assert "The bundle has no shares of its components on the test split to compare with" in outline.words


def test_page_stands_beside_its_table_and_replaces_only_its_kind(table: Path, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(table, tmp_path / "answers.parquet"))
    (tmp_path / "mine.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "answers").mkdir()

    page = write_summary(copy, bundle, images=False)

    assert page == tmp_path / "answers.html" == write_summary(copy, bundle, images=False)
    for other in ("mine.html", "folder.html"):
        with pytest.raises(ServingError, match=rf"{other} must be a new file or a page about a table, got something"):
            write_summary(copy, bundle, tmp_path / other)
    copy.rename(tmp_path / "answers" / copy.name)
    assert default_page(open_table(tmp_path / "answers")) == page
    assert (tmp_path / "mine.html").read_text() == "<!doctype html><title>mine</title>"


def test_missing_extra_is_named(table: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(
        ServingError, match=r"got no matplotlib: pip install 'discriminant\[score\]', or ask for --json"
    ):
        write_summary(table, bundle, tmp_path / "page.html")
    assert figures_in(table, bundle)["rows"] == 62


def test_command_writes_a_page_or_prints_figures(table: Path, bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    written = serving("summarize", table, "--bundle", bundle, "--out", page, "--no-thumbnails", check=True)
    printed = serving("summarize", table, "--bundle", bundle, "--json", check=True)
    refused = serving("summarize", tmp_path, "--bundle", bundle)

    assert written.stdout == f"Wrote {page}\n"
    assert "No images are shown: they were not asked for." in Outline(page.read_text()).words
    assert json.loads(printed.stdout) == figures_in(table, bundle)
    assert refused.returncode == 1
    assert "must be a .parquet or .jsonl file" in refused.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
@pytest.mark.parametrize("width", [400, 1280])
def test_browser_shows_every_picture_and_scrolls_in_one_direction_only(
    width: int, table: Path, bundle: Path, pictures: tuple[tuple[str, bytes], ...], tmp_path: Path
) -> None:
    page = write_summary(table, bundle, tmp_path / "page.html", source=Memory(pictures))

    seen = seen_in_browser(page, width, tmp_path)

    assert seen["scroll"] <= seen["width"] <= width
    assert seen["over"] == 0
    assert len(seen["widths"]) == 3 + 48
    assert min(seen["widths"]) > 0
    assert seen["fetched"] == []


# Thumbnails


def test_images_are_found_decoded_and_made_small(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (300, 600, 3), dtype=np.uint8)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    images = (
        ("photo", encoded(photo, "JPEG")),
        ("small", encoded(small)),
        ("torn", encoded(small)[:60]),
        ("gone", b""),
    )

    seen = thumbnails(["photo", "small", "torn", "gone", "never"], Memory(images), Bundle.load(bundle).manifest.input)
    refused = thumbnails(["photo"], Memory(images), Bundle.load(bundle).manifest.input, Limits(max_pixels=1000))

    assert (seen.images["photo"].width, seen.images["photo"].height) == (128, 64)
    assert shown_pixels(seen.images["photo"].uri).shape == (64, 128, 3)
    assert np.array_equal(shown_pixels(seen.images["small"].uri), small)
    assert seen.missing["torn"].startswith("image must be a whole PNG image, got a broken one")
    assert seen.missing["gone"] == "gone must be readable, got nothing"
    assert seen.missing["never"] == "not in the source any more"
    assert refused.missing["photo"] == "image must have at most 1000 pixels, got 600 x 300"


def test_pixels_of_an_array_are_shown() -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)

    assert np.array_equal(shown_pixels(thumbnail(gray).uri), gray[:, :, 0])


def shown_pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def test_images_that_cannot_be_reached_are_listed_as_text_with_the_reason(
    table: Path, bundle: Path, pictures: tuple[tuple[str, bytes], ...], tmp_path: Path
) -> None:
    outline = page_of(table, bundle, tmp_path / "page.html")

    assert "the table does not say where its images are; name the place with --images." in outline.words
    assert outline.tags.count("img") == 3
    for row in figures_in(table, bundle)["least_typical"]:
        assert f"{row['key']} {row['label']} {row['probability']:.3f}" in outline.words


def test_source_that_was_named_must_be_there_and_the_right_one(table: Path, bundle: Path, tmp_path: Path) -> None:
    others = Memory((("other.png", noise(1, 0)[0]),))

    with pytest.raises(SourceError, match=r"the source must have the images of the table, got none of \d+ that were"):
        write_summary(table, bundle, tmp_path / "page.html", source=others)
    with pytest.raises(SourceError, match="memory must be there, got nothing"):
        write_summary(table, bundle, tmp_path / "page.html", source=Memory((), broken=True))
    assert list(tmp_path.iterdir()) == []


def test_images_of_a_scored_folder_are_found_where_the_table_says(
    bundle: Path, pictures: tuple[tuple[str, bytes], ...], tmp_path: Path
) -> None:
    folder, table = tmp_path / "photos", tmp_path / "answers.parquet"
    folder.mkdir()
    for key, image in pictures:
        (folder / key).write_bytes(image)
    serving("score", folder, "--bundle", bundle, "--out", table, "--workers", 1, "--top-k", 2, check=True)

    found = page_of(table, bundle, tmp_path / "page.html")
    folder.rename(tmp_path / "moved")
    lost = page_of(table, bundle, tmp_path / "page.html")
    serving("summarize", table, "--bundle", bundle, "--images", tmp_path / "moved", check=True)
    again = Outline((tmp_path / "answers.html").read_text())
    elsewhere = serving("summarize", table, "--bundle", bundle, "--images", folder)

    assert found.tags.count("img") == again.tags.count("img") == 3 + 48
    assert lost.tags.count("img") == 3
    assert re.search(
        r"they are not where the table says any more \(.* got .*\); name their place with --images", lost.words
    )
    assert elsewhere.returncode == 1
    assert "photos must be a folder of images, got nothing there" in elsewhere.stderr


@pytest.mark.parametrize(
    "description", [{"kind": "folder"}, {"kind": "moon", "place": "far"}, {"kind": "folder", "place": 3}]
)
def test_table_that_describes_no_source_has_a_page_without_images(
    description: dict[str, Any], bundle: Path, rows: list[Row], tmp_path: Path
) -> None:
    table = write_parquet(tmp_path / "answers.parquet", rows[:3], {"source": description})

    words = page_of(table, bundle, tmp_path / "page.html").words

    assert "No images are shown: they are not where the table says any more (" in words


def test_queries_of_the_readme_answer(table: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    answers = answered(rows)
    label = max(LABELS, key=lambda name: sum(row["label"] == name for row in answers))

    [block] = re.findall(r"^```sql\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    block = block.replace("photos.parquet", table.name).replace("'cat'", f"'{label}'")

    classes, odd, errors = (duckdb.sql(query).fetchall() for query in block.strip().rstrip(";").split(";"))

    for name, count, confidence in classes:
        own = [row["probability"] for row in answers if row["label"] == name]
        assert count == len(own)
        assert confidence == pytest.approx(sum(own) / count, abs=6e-4)
    assert sum(count for _, count, _ in classes) == 60
    own_rows = sorted((row for row in answers if row["label"] == label), key=lambda row: row["log_density"])
    assert [(key, component) for key, component, _ in odd] == [(row["key"], row["component"]) for row in own_rows[:10]]
    assert errors == [
        ("image_too_large", 1, "image must be small, got a large one"),
        ("undecodable_image", 1, "image must be whole, got <b>"),
    ]
