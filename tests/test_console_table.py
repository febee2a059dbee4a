"""The console's page on a table: filters against DuckDB, marks, images written out, and the page in a real Chromium."""

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, encoded, serving, until
from PIL import Image
from starlette.testclient import TestClient

from serving.batch.places import place_of
from serving.batch.source import Item, Shard, Source, SourceError, UnreadableFile
from serving.batch.sources import open_source
from serving.batch.summary.table import Table, TableError, open_table
from serving.console.app import create_app
from serving.console.setup import Setup
from serving.console.table.filters import Filters
from serving.console.table.images import Images
from serving.console.table.marks import Mark, MarkedError, Marks
from serving.console.table.naming import check_label, file_of, folder_of
from serving.console.table.opened import default_marked
from serving.console.table.order import MOST_SORTED_PAGES, PAGE_ROWS
from serving.console.table.query import Page as Found
from serving.console.table.query import ask
from serving.console.table.rows import Rows
from serving.console.table.thumbnails import Thumbnails
from serving.console.table.written import write_images
from serving.errors import BadParameter, ServingError
from training.folders import list_folder

MNIST = ROOT / "model_store" / "mnist-mda" / "1"
ROWS = 5000
NAMES = {("cat", 0): "asleep", ("dog", 2): "wet"}
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("component", pa.int32()),
        ("component_name", pa.string()),
        ("component_probability", pa.float32()),
        ("log_density", pa.float32()),
        ("typicality", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("version", pa.int32()),
        ("bundle_digest", pa.string()),
    ]
)
HOSTILE = (
    "../../../etc/passwd",
    "/absolute.png",
    "..",
    "a/../../b.png",
    "with\0nul.png",
    "new\nline.png",
    ".hidden.png",
    "…/\u202egnp.exe",
    "x" * 5000 + ".png",
    "é" * 300,
    "same.png",
    "sub/same.png",
    "train.parquet#17",
    "<script>alert(1)</script>.png",
    "con:\\..\\up.png",
)

Row = dict[str, Any]


# The rows of a table


def row_of(number: int, rng: np.random.Generator) -> Row:
    origin = {"model": "pets", "version": 1, "bundle_digest": "0" * 64}
    key = f"{rng.choice(['Garden', 'house', 'a_b%c'])}/{number:05}.jpg"
    if rng.random() < 0.1:
        code = str(rng.choice(["undecodable_image", "image_too_large"]))
        return {"key": key, "error_code": code, "error_message": "broken", **origin}
    label, component = str(rng.choice(["cat", "dog", "10", "9"])), int(rng.integers(3))
    return {
        "key": key,
        "label": label,
        "probability": round(float(rng.random()), 2),
        "component": component,
        "component_name": NAMES.get((label, component)),
        "log_density": float(rng.normal()),
        "typicality": None if rng.random() < 0.05 else round(float(rng.random()), 3),
        "flags": sorted(rng.choice(["atypical", "uncertain", "odd"], rng.integers(3), replace=False).tolist()),
        **origin,
    }


def write_table(
    file: Path, rows: list[Row], job: Mapping[str, Any] | None = None, without: Collection[str] = ()
) -> Path:
    schema = pa.schema([column for column in SCHEMA if column.name not in without])
    metadata = {"job": json.dumps(job)} if job else None
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata)), file, row_group_size=700)
    return file


def answer(key: str, label: str = "cat", **more: Any) -> Row:
    return {"key": key, "label": label, "probability": 0.9, "model": "m", "version": 1, "bundle_digest": "0", **more}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five thousand rows of everything; read only."""
    rng = np.random.default_rng(5)
    return write_table(tmp_path_factory.mktemp("table") / "pets.parquet", [row_of(n, rng) for n in range(ROWS)])


@pytest.fixture(scope="module")
def rows(table: Path) -> Rows:
    return Rows.of(open_table(table))


def keys_of(page: Found) -> list[str]:
    return [row["key"] for row in page.rows]


def keys_by_sql(table: Path, where: str, order: str = "file_row_number") -> list[str]:
    found = duckdb.sql(
        f"SELECT key FROM read_parquet('{table}', file_row_number = true) WHERE {where} ORDER BY {order}"
    )
    return [key for (key,) in found.fetchall()]


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ({}, "true"),
        ({"label": "cat"}, "label = 'cat'"),
        ({"label": "dog", "component": "2"}, "label = 'dog' AND component = 2"),
        ({"error": "any"}, "error_code IS NOT NULL"),
        ({"error": "none"}, "error_code IS NULL"),
        ({"error": "image_too_large"}, "error_code = 'image_too_large'"),
        ({"flag": "odd"}, "list_contains(flags, 'odd')"),
        ({"typicality_to": "0.1"}, "typicality <= 0.1"),
        ({"typicality_from": "0.25", "typicality_to": "0.75"}, "typicality BETWEEN 0.25 AND 0.75"),
        ({"probability_from": "0.9"}, "probability >= 0.9::FLOAT"),
        ({"probability_from": "0.1", "probability_to": "0.1"}, "probability = 0.1::FLOAT"),
        ({"key": "GARDEN/0000"}, "contains(lower(key), 'garden/0000')"),
        ({"key": "b%c/"}, "contains(key, 'b%c/')"),
        ({"label": "none such"}, "false"),
        (
            {"label": "9", "flag": "atypical", "error": "none", "typicality_to": "0.5", "key": "house"},
            "label = '9' AND list_contains(flags, 'atypical') AND typicality <= 0.5 AND contains(key, 'house')",
        ),
    ],
)
def test_filters_find_what_sql_finds(rows: Rows, table: Path, query: dict[str, str], where: str) -> None:
    page, expected = ask(rows, Filters.of(query)), keys_by_sql(table, where)

    assert page.total == len(expected)
    assert keys_of(page) == expected[:PAGE_ROWS]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("typicality", "typicality ASC NULLS LAST"),
        ("-typicality", "typicality DESC NULLS LAST"),
        ("probability", "probability ASC NULLS LAST"),
        ("-probability", "probability DESC NULLS LAST"),
        ("", "file_row_number"),
    ],
)
def test_pages_one_after_the_other_are_the_whole_order(rows: Rows, table: Path, sort: str, order: str) -> None:
    expected = keys_by_sql(table, "label = 'cat'", f"{order}, file_row_number")
    first = ask(rows, Filters.of({"label": "cat", "sort": sort}))

    pages = [ask(rows, Filters.of({"label": "cat", "sort": sort, "page": str(n + 1)})) for n in range(first.pages)]

    assert len(pages) > 10
    assert [key for page in pages for key in keys_of(page)] == expected


def test_page_beyond_the_last_is_the_last(rows: Rows, table: Path) -> None:
    page = ask(rows, Filters.of({"page": "84", "sort": "probability"}))

    assert (page.number, page.pages) == (84, 84)
    assert ask(rows, Filters.of({"page": "999", "sort": "probability"})) == page
    assert keys_of(ask(rows, Filters.of({"page": "999"}))) == keys_by_sql(table, "true")[83 * PAGE_ROWS :]


def test_counts_say_what_each_other_choice_would_give(rows: Rows, table: Path) -> None:
    chosen = {"label": "dog", "component": "1", "flag": "odd", "typicality_to": "0.8"}

    counts = ask(rows, Filters.of(chosen)).counts

    for label in ("cat", "dog", "9", "10"):
        choice = {name: value for name, value in chosen.items() if name != "component"} | {"label": label}
        assert counts.labels[label] == ask(rows, Filters.of(choice)).total > 0
    for component in range(3):
        assert counts.components[component] == ask(rows, Filters.of(chosen | {"component": str(component)})).total > 0
    for flag in ("odd", "atypical", "uncertain"):
        assert counts.flags[flag] == ask(rows, Filters.of(chosen | {"flag": flag})).total > 0
    errors = ask(rows, Filters()).counts.errors
    [(expected, code, answers)] = duckdb.sql(
        f"SELECT count(error_code), count(*) FILTER (error_code = 'image_too_large'), count(label) FROM '{table}'"
    ).fetchall()
    assert errors["image_too_large"] + errors["undecodable_image"] == expected
    assert (errors["image_too_large"], errors["none"]) == (code, answers)


def test_marked_images_can_be_filtered(rows: Rows, table: Path) -> None:
    some = keys_by_sql(table, "true")[10:2000:100]

    assert keys_of(ask(rows, Filters.of({"marked": "yes"}), some)) == some
    assert ask(rows, Filters.of({"marked": "no"}), some).total == ROWS - len(some)
    assert ask(rows, Filters.of({"marked": "yes"})).total == 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"labels": "7"}, "parameter must be one of label, component, .*, got 'labels'"),
        ({"page": "0"}, "page must be a whole number of at least 1, got '0'"),
        ({"page": "²"}, "page must be a whole number of at least 1, got '²'"),
        ({"component": "1"}, "component must be one of a label, got 1 without a label"),
        ({"typicality_from": "nan"}, "typicality_from must be a number from 0 to 1, got 'nan'"),
        ({"probability_to": "90 %"}, "probability_to must be a number from 0 to 1, got '90 %'"),
        ({"typicality_from": "0.5", "typicality_to": "0.1"}, r"typicality_from must be at most typicality_to \(0.1\)"),
        ({"sort": "key"}, "sort must be typicality, -typicality, .* or nothing, got 'key'"),
        ({"marked": "maybe"}, "marked must be yes, no or nothing, got 'maybe'"),
        ({"key": "x" * 1001}, "key must have at most 1000 characters, got 1001"),
    ],
)
def test_filters_that_break_a_rule_are_refused(query: dict[str, str], message: str) -> None:
    with pytest.raises(BadParameter, match=f"^{message}"):
        Filters.of(query)


def test_sorting_ends_at_some_page(rows: Rows) -> None:
    with pytest.raises(BadParameter, match="page must be at most 1000 where rows are sorted, got 1001: sort the other"):
        ask(rows, Filters.of({"sort": "typicality", "page": str(MOST_SORTED_PAGES + 1)}))


def test_lines_of_json_and_folders_of_parts_are_the_same_table(rows: Rows, table: Path, tmp_path: Path) -> None:
    every = pq.read_table(table)
    lines, parts = tmp_path / "pets.jsonl", tmp_path / "pets"
    lines.write_text("".join(json.dumps(row) + "\n" for row in every.to_pylist()))
    parts.mkdir()
    for number in range(2):
        pq.write_table(every.slice(number * 2600, 2600), parts / f"part-{number:05}.parquet")
    filters = Filters.of({"label": "cat", "flag": "odd", "sort": "typicality", "page": "2"})

    expected = ask(rows, filters)

    assert len(expected.rows) == PAGE_ROWS
    assert ask(Rows.of(open_table(parts)), filters) == expected
    assert ask(Rows.of(open_table(lines)), filters) == expected


def test_a_million_rows_are_never_in_memory_together(tmp_path: Path) -> None:
    count, part = 1_000_000, 50_000
    file = tmp_path / "million.parquet"
    rng = np.random.default_rng(1)
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for first in range(0, count, part):
            nothing = {column.name: pa.nulls(part, column.type) for column in SCHEMA}
            some = {
                "key": pa.array([f"photos/{number:07}.jpg" for number in range(first, first + part)]),
                "label": pa.array(np.char.mod("class %d", rng.integers(0, 100, part)).tolist()),
                "probability": pa.array(rng.random(part), pa.float32()),
                "typicality": pa.array(rng.random(part)),
            }
            writer.write_table(pa.table([(nothing | some)[name] for name in SCHEMA.names], schema=SCHEMA))
    own, former = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(own)
    try:
        rows = Rows.of(open_table(file))
        query = {"label": "class 42", "typicality_to": "0.5", "sort": "probability", "key": "photos"}
        page = ask(rows, Filters.of(query))
    finally:
        pa.set_memory_pool(former)
    expected = keys_by_sql(file, "label = 'class 42' AND typicality <= 0.5", "probability")
    held = own.max_memory()

    assert rows.known.rows == count
    assert keys_of(page) == expected[:PAGE_ROWS]
    assert page.total == len(expected)
    assert 0 < held < pq.read_table(file).nbytes / 3


def test_table_without_some_columns_is_one_too(tmp_path: Path) -> None:
    without = ("typicality", "flags", "component_name")
    file = write_table(tmp_path / "older.parquet", [answer(f"{n}.png") for n in range(3)], without=without)

    rows = Rows.of(open_table(file))

    assert "typicality" not in rows.known.filled
    assert keys_of(ask(rows, Filters.of({"sort": "typicality"}))) == ["0.png", "1.png", "2.png"]
    assert ask(rows, Filters.of({"typicality_to": "1"})).total == 0
    assert ask(rows, Filters.of({"flag": "odd"})).total == 0


@pytest.mark.parametrize("name", ["empty.parquet", "empty.jsonl"])
def test_empty_table_has_a_page_without_rows(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith(".jsonl"):
        file.touch()
    else:
        write_table(file, [])

    page = ask(Rows.of(open_table(file)), Filters.of({"sort": "typicality", "page": "3"}))

    assert (page.rows, page.total, page.number, page.pages) == ([], 0, 1, 1)


def test_table_of_errors_alone_has_no_class(tmp_path: Path) -> None:
    failed = {"label": None, "probability": None, "error_code": "undecodable_image", "error_message": "broken"}
    file = write_table(tmp_path / "errors.parquet", [answer("a.png") | failed, answer("b.png") | failed])

    rows = Rows.of(open_table(file))

    assert rows.known.labels == set()
    assert ask(rows, Filters()).counts.errors == {"undecodable_image": 2, "none": 0}
    assert ask(rows, Filters.of({"sort": "-probability"})).total == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello", "must be a .parquet or .jsonl file or a folder of such parts, got another file"),
        ("torn.parquet", b"PAR1", "must be a whole part of a table, got"),
        ("other.jsonl", b"[1, 2]\n", "must be a whole part of a table, got"),
        ("gone.parquet", None, "must be a .parquet or .jsonl file or a folder of such parts, got nothing there"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(TableError, match=message):
        Rows.of(open_table(tmp_path / name))


def test_copy_that_finds_no_room_is_said(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))

    with pytest.raises(TableError, match=r"must have room for a copy of pets\.parquet, got .*: name another"):
        Rows.of(open_table(table))


def test_command_refuses_what_is_no_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")

    result = serving("console", "--table", tmp_path / "other.parquet", "--no-open", "--port", 0)

    assert result.returncode == 1
    assert "error:" in result.stderr
    assert "must have the columns of a table of scores, got none named key, label" in result.stderr
    assert "Traceback" not in result.stderr


# Names, marks and what is written out


@dataclass(frozen=True)
class Memory(Source):
    """Images by their keys, and how often somebody has looked for some."""

    images: dict[str, bytes | np.ndarray]
    asked: list[int] = field(default_factory=list)
    broken_after: int | None = None

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def shards(self, images: int) -> Iterator[Shard]:
        yield Shard({}, "", len(self.images))

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        for key, image in self.images.items():
            yield Item(key, image if len(image) else UnreadableFile("image must be readable, got nothing"))

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        self.asked.append(len(keys))
        for number, item in enumerate(super().find(keys, max_bytes)):
            if number == self.broken_after:
                raise SourceError("memory must last, got an end")
            yield item


def picture(level: int) -> bytes:
    return encoded(np.full((8, 8), level, np.uint8))


def images_of(source: Source, keys: Collection[str], folder: Path) -> Images:
    file = write_table(folder / "some.parquet", [answer(key) for key in keys])
    return Images(Rows.of(open_table(file)), source)


def files_below(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("key", HOSTILE)
def test_name_of_a_file_is_one_harmless_part(key: str) -> None:
    name = file_of(key, ".png")

    assert Path(name).name == name
    assert name.isprintable()
    assert not name.startswith(".")
    assert len(name.encode()) <= 255
    assert name == file_of(key, ".png")


def test_different_keys_have_different_names() -> None:
    names = {file_of(key, ".png") for key in [*HOSTILE, *(f"{n}/image.png" for n in range(20_000))]}

    assert len(names) == len(HOSTILE) + 20_000


@pytest.mark.parametrize("label", ["7", "Siamese cat", "Übergang", "t-shirt & top", "50 %"])
def test_label_is_its_own_folder(label: str) -> None:
    check_label(label)

    assert folder_of(label) == label


@pytest.mark.parametrize("label", ["", ".", "..", "../up", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", " a", "x" * 61])
def test_label_that_is_no_folder_is_refused_or_renamed(label: str) -> None:
    with pytest.raises(BadParameter, match=r"^label must be the name of a folder: 1 to 60 printable characters"):
        check_label(label)
    folder = folder_of(label)
    assert Path(folder).name == folder
    assert folder.isprintable()
    assert not folder.startswith(".")


def test_marks_outlive_the_console(tmp_path: Path) -> None:
    folder = tmp_path / "marked"
    first = Marks(folder, "pets.parquet", "state")
    assert not folder.exists()
    first.set("a.png", "dog", was="cat")
    first.set("../b.png", "wolf")
    assert first.set("a.png", "fox", was="cat") == 2
    assert first.set("../b.png", None) == 1
    first.close()

    again = Marks(folder, "pets.parquet", "state")

    assert again.all() == {"a.png": Mark(label="fox", was="cat")}
    assert again.note is None
    assert files_below(folder) == ["lock", "marks.json"]


def test_marks_of_a_table_that_was_written_anew_stay_and_are_told(tmp_path: Path) -> None:
    first = Marks(tmp_path, "pets.parquet", "before")
    first.set("a.png", "dog")
    first.close()

    again = Marks(tmp_path, "pets.parquet", "after")
    other = Marks(tmp_path, "birds.parquet", "after")

    assert list(again.all()) == ["a.png"]
    assert again.note == "The table was written anew since the marks were made; they stay with their images."
    assert other.note == "The marks of this folder were made on another table, pets.parquet."


def test_one_console_at_a_time_marks(tmp_path: Path) -> None:
    first, second = Marks(tmp_path, "t", "s"), Marks(tmp_path, "t", "s")
    first.set("a.png", "dog")

    with pytest.raises(MarkedError, match=f"one console at a time must write to {tmp_path.name}, got another one"):
        second.set("b.png", "cat")
    first.close()

    assert second.set("b.png", "cat") == 2  # with the other's mark
    assert set(second.all()) == {"a.png", "b.png"}


@pytest.mark.parametrize("content", ["", "[]", '{"table": "t", "state": "s", "marks": {"a": 1}}'])
def test_marks_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "marks.json").write_text(content)

    with pytest.raises(MarkedError, match=r"marks\.json must be the marks of a console, got something else"):
        Marks(tmp_path, "t", "s")


def test_mark_that_cannot_be_kept_changes_nothing(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "marked", "t", "s")
    (tmp_path / "marked").write_text("a file")

    with pytest.raises(MarkedError, match=r"^marked must be a folder that can be written to, got File exists$"):
        marks.set("a.png", "dog")

    assert marks.all() == {}


def test_hostile_keys_are_written_inside_and_whole(tmp_path: Path) -> None:
    contents = {key: picture(level) for level, key in enumerate(HOSTILE)}
    images = images_of(Memory(contents), [*contents], tmp_path)
    labels = ("dog", "../../up", ".")
    marks = {key: Mark(label=labels[n % 3], was="cat") for n, key in enumerate(HOSTILE)}
    before = {file.name for file in tmp_path.parent.iterdir()}

    written = write_images(tmp_path / "marked", "t", marks, images)

    folder = tmp_path / "marked" / "images"
    record = json.loads((folder / ".written.json").read_text())["files"]
    assert written.labels == dict.fromkeys(labels, 5)
    assert set(written.folders) == {"../../up", "."}
    assert {key: (folder / file).read_bytes() for key, file in record.items()} == contents
    assert files_below(folder) == sorted([".written.json", *record.values()])
    assert files_below(tmp_path / "marked") == sorted(f"images/{file}" for file in [".written.json", *record.values()])
    assert {file.name for file in tmp_path.parent.iterdir()} == before
    assert list_folder(folder).others == {}
    assert sum(map(len, list_folder(folder).classes.values())) == len(HOSTILE)


def test_what_cannot_be_written_is_said_and_counted(tmp_path: Path) -> None:
    torn = encoded(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))[:-60]
    contents = {"a.png": picture(1), "torn.png": torn, "unread.png": b"", "text.png": b"hello, this is no image"}
    keys = [*contents, "gone.png"]
    images = images_of(Memory(contents), keys, tmp_path)
    told: list[int] = []

    written = write_images(tmp_path / "m", "t", {key: Mark(label="x", was="y") for key in keys}, images, told.append)

    assert written.labels == {"x": 1}
    assert set(written.not_written) == {"torn.png", "unread.png", "text.png", "gone.png"}
    assert written.not_written["gone.png"] == "image must be in the source, got none of this name: was it moved?"
    assert written.not_written["unread.png"] == "image must be readable, got nothing"
    assert told == [1, 2, 3, 4, 5]


def test_images_keep_their_former_files_when_the_source_is_gone(tmp_path: Path) -> None:
    marks = {key: Mark(label="dog", was="cat") for key in ("a.png", "b.png")}
    write_images(tmp_path, "t", marks, images_of(Memory({"a.png": picture(1), "b.png": picture(2)}), marks, tmp_path))

    marks = {"a.png": Mark(label="wolf", was="cat"), "c.png": Mark(label="dog", was="cat")}
    written = write_images(tmp_path, "t", marks, images_of(Memory({"c.png": picture(3)}), marks, tmp_path))

    files = {file.parent.name: file.read_bytes() for file in (tmp_path / "images").glob("*/*")}
    assert files == {"wolf": picture(1), "dog": picture(3)}
    assert (written.kept, written.not_written) == (1, {})


def test_source_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    contents = {"a.png": picture(1), "b.png": picture(2)}
    marks = {key: Mark(label="dog", was="cat") for key in contents}
    write_images(tmp_path, "t", marks, images_of(Memory(contents), marks, tmp_path))
    before = files_below(tmp_path)

    with pytest.raises(SourceError, match="memory must last, got an end"):
        write_images(tmp_path, "t", marks, images_of(Memory(contents, broken_after=1), marks, tmp_path))
    with pytest.raises(
        MarkedError, match="at least one marked image must be readable, got none of 1: image must be in"
    ):
        write_images(tmp_path, "t", {"z": Mark(label="a", was=None)}, images_of(Memory({}), ["z"], tmp_path))
    with pytest.raises(MarkedError, match="at least one image must be marked to be written out, got none"):
        write_images(tmp_path, "t", {}, images_of(Memory({}), [], tmp_path))

    assert files_below(tmp_path) == before


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    images = images_of(Memory({"a.png": picture(1)}), ["a.png"], tmp_path)
    marks = {"a.png": Mark(label="dog", was="cat")}
    target = tmp_path / "m" / "images"
    target.mkdir(parents=True)

    with pytest.raises(MarkedError, match="m/images must hold only what the console has written, got folders without"):
        write_images(tmp_path / "m", "t", marks, images)
    target.rmdir()
    write_images(tmp_path / "m", "t", marks, images)
    (target / "dog" / "own.png").write_bytes(picture(2))
    with pytest.raises(MarkedError, match=r"must hold only what the console has written, got 'dog/own\.png' too: move"):
        write_images(tmp_path / "m", "t", marks, images)

    assert (target / "dog" / "own.png").read_bytes() == picture(2)


def test_a_killed_writing_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    images = images_of(Memory({"a.png": picture(1)}), ["a.png"], tmp_path)
    stale = tmp_path / "m" / ".images.0123"
    stale.mkdir(parents=True)
    (stale / "half.png").write_bytes(b"half")

    write_images(tmp_path / "m", "t", {"a.png": Mark(label="dog", was="cat")}, images)

    assert not stale.exists()


def test_a_console_that_was_killed_between_both_renames_has_lost_nothing(tmp_path: Path) -> None:
    marks = {"a.png": Mark(label="dog", was="cat")}
    write_images(tmp_path / "m", "t", marks, images_of(Memory({"a.png": picture(1)}), ["a.png"], tmp_path))
    (tmp_path / "m" / "images").rename(tmp_path / "m" / ".images.0123")

    written = write_images(tmp_path / "m", "t", marks, images_of(Memory({}), ["a.png"], tmp_path))

    assert (written.labels, written.kept) == ({"dog": 1}, 1)
    assert [file.read_bytes() for file in (tmp_path / "m" / "images" / "dog").iterdir()] == [picture(1)]


def test_members_of_a_tar_and_rows_of_parquet_and_pixels_are_written(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name in ("../up.png", "/root.png", "a/b.png", "a/b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(len(name)))
            tar.addfile(member, io.BytesIO(picture(len(name))))
    column = [{"bytes": picture(5), "path": None}, {"bytes": picture(6), "path": "../x.png"}]
    pq.write_table(pa.table({"image": column}), tmp_path / "rows.pq")
    pixels = np.stack([np.full((6, 5), level, np.uint8) for level in (7, 8)])
    np.save(tmp_path / "pixels.npy", pixels)

    for number, name in enumerate(["some.tar", "rows.pq", "pixels.npy"]):
        source = open_source(str(tmp_path / name))
        keys = [item.key for shard in source.shards(100) for item in source.read(shard, 10_000)]
        own = tmp_path / str(number)
        own.mkdir()
        marks = {key: Mark(label="dog", was="cat") for key in keys}
        written = write_images(own / "m", "t", marks, images_of(source, keys, own))
        files = sorted((own / "m" / "images" / "dog").iterdir())
        levels = sorted(int(np.asarray(Image.open(file))[0, 0]) for file in files)
        if name == "some.tar":
            assert levels == [len("../up.png"), len("/root.png")]
            why = "image must have a key of its own, got one that stands 2 times"
            assert written.not_written == {"some.tar/a/b.png": why}
        else:
            assert levels == ([5, 6] if name == "rows.pq" else [7, 8])
            assert written.not_written == {}
        if name == "pixels.npy":
            assert np.array_equal(np.asarray(Image.open(files[0])), pixels[0])


# Thumbnails


def test_a_page_of_thumbnails_is_looked_for_together(tmp_path: Path) -> None:
    contents = {f"{n}.png": picture(n) for n in range(50)}
    source = Memory(contents)
    thumbnails = Thumbnails(images_of(source, [*contents], tmp_path))

    thumbnails.look_for([*contents])
    shown = {key: thumbnails.get(key).result(60) for key in contents}

    assert source.asked == [50]
    for key, one in shown.items():
        assert one.media_type == "image/png"
        assert np.asarray(Image.open(io.BytesIO(one.content)))[0, 0].tolist() == [int(key.removesuffix(".png"))] * 3
    assert thumbnails.get("3.png").result(60) == shown["3.png"]
    assert source.asked == [50]


def test_image_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    source = Memory({"a.png": picture(1), "text.png": b"hello, this is no image"})
    thumbnails = Thumbnails(images_of(source, ["a.png", "text.png", "gone.png"], tmp_path))

    with pytest.raises(ServingError, match="image must be in the source, got none of this name"):
        thumbnails.get("gone.png").result(60)
    with pytest.raises(ServingError, match="image must be PNG, JPEG or WebP"):
        thumbnails.get("text.png").result(60)
    assert thumbnails.get("a.png").result(60).width == 8


def test_broken_source_is_said_of_every_image_it_lacks(tmp_path: Path) -> None:
    source = Memory({"a.png": picture(1), "b.png": picture(2)}, broken_after=1)
    thumbnails = Thumbnails(images_of(source, ["a.png", "b.png"], tmp_path))
    thumbnails.look_for(["a.png", "b.png"])

    with pytest.raises(SourceError, match="memory must last, got an end"):
        thumbnails.get("b.png").result(60)
    assert thumbnails.get("a.png").result(60).width == 8


def test_image_that_is_put_back_is_shown_with_its_page(tmp_path: Path) -> None:
    contents = {"a.png": picture(1)}
    source = Memory(contents)
    thumbnails = Thumbnails(images_of(source, ["a.png", "b.png"], tmp_path))
    for _ in range(2):
        with pytest.raises(ServingError, match="image must be in the source"):
            thumbnails.get("b.png").result(60)
    asked = len(source.asked)

    contents["b.png"] = picture(2)
    thumbnails.look_for(["a.png", "b.png"])

    assert thumbnails.get("b.png").result(60).width == 8
    assert (asked, len(source.asked)) == (1, 2)


def test_pages_that_wait_are_looked_for_in_one_pass(tmp_path: Path) -> None:
    contents = {f"{n}.png": picture(n) for n in range(60)}
    held, passes = Event(), Semaphore(0)

    class Slow(Memory):
        def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
            passes.release()
            held.wait()
            yield from super().find(keys, max_bytes)

    source = Slow(contents)
    thumbnails = Thumbnails(images_of(source, [*contents], tmp_path))
    pages = [[f"{n}.png" for n in range(first, first + 10)] for first in range(0, 60, 10)]
    for page in pages[:2]:
        thumbnails.look_for(page)
        passes.acquire()
    for page in pages[2:]:
        thumbnails.look_for(page)

    held.set()

    assert [thumbnails.get(key).result(60).width for key in contents] == [8] * 60
    assert sorted(source.asked) == [10, 10, 40]


def test_words_of_a_source_do_not_say_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "photos"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(1))
    images = images_of(open_source(str(folder)), ["a.png"], tmp_path)
    shutil.rmtree(folder)

    with pytest.raises(ServingError) as caught:
        Thumbnails(images).get("a.png").result(60)

    assert str(tmp_path) not in str(caught.value)


# What the page asks for


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A table of twelve images in a folder, one of which is gone, and one that was never any."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(picture(20 * number))
    rows = [answer(f"{n}.png", "cat" if n % 2 else "n/a", component=n % 3) for n in range(12)]
    rows.append(answer("bad.png") | {"label": None, "probability": None, "error_code": "undecodable_image"})
    (folder / "7.png").unlink()
    (folder / "bad.png").write_bytes(b"hello, this is no image")
    return write_table(tmp_path / "photos.parquet", rows, {"source": {"kind": "folder", "place": str(folder)}})


def client_of(table: Path, **more: Any) -> TestClient:
    app = create_app(replace(Setup.of_nothing(), table=str(table), **more))
    return TestClient(app, base_url="http://127.0.0.1:8090", headers={"Origin": "http://127.0.0.1:8090"})


def test_page_asks_marks_and_writes(photos: Path) -> None:
    client = client_of(photos)
    marked = photos.with_name("photos-marked")

    facts = client.get("/api/table").json()
    answer = client.get("/api/table/rows", params={"label": "cat", "sort": "-probability"}).json()
    shown, gone = client.get("/api/table/thumbnails/5"), client.get("/api/table/thumbnails/7")
    assert not marked.exists()
    for row, label in ((1, "dog"), (0, "n/a"), (7, "dog")):
        assert client.post("/api/table/marks", json={"row": row, "label": label}).status_code == 200
    client.post("/api/table/written")
    until(lambda: client.get("/api/table/written").json()["state"] == "done")
    progress = client.get("/api/table/written").json()

    assert (facts["rows"], facts["labels"], facts["notes"], facts["images"]) == (13, ["cat", "n/a"], [], None)
    assert [row["key"] for row in answer["rows"]] == [f"{n}.png" for n in (1, 3, 5, 7, 9, 11)]
    assert answer["counts"]["label"] == [["cat", "cat", 6], ["n/a", "n/a", 6]]
    assert Image.open(io.BytesIO(shown.content)).size == (8, 8)
    assert (gone.status_code, gone.json()["error"]["message"].partition(",")[0]) == (400, "image must be in the source")
    assert progress["labels"] == [["dog", 1], ["n/a", 1]]
    assert [key for key, _ in progress["listed"]] == ["7.png"]
    assert (marked / "images" / "dog" / file_of("1.png", ".png")).read_bytes() == picture(20)
    for text in (json.dumps(facts), json.dumps(answer), json.dumps(progress), gone.text, client.get("/table").text):
        assert str(photos.parent) not in text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, 'request must be JSON like {"row": 17, "label": "1"}, got something else'),
        ('["row"]', 400, "request must be JSON like"),
        ('{"row": true, "label": "a"}', 400, "row must be a whole number and label a text or null, got True and 'a'"),
        ('{"row": 1, "label": 7}', 400, "row must be a whole number and label a text or null"),
        ('{"row": 13, "label": "a"}', 422, "row must be one of the table's 13, got 13"),
        ('{"row": -1, "label": "a"}', 422, "row must be one of the table's 13, got -1"),
        ('{"row": 1, "label": "../up"}', 422, "label must be the name of a folder"),
    ],
)
def test_marks_that_break_a_rule_are_refused(photos: Path, body: str, status: int, message: str) -> None:
    client = client_of(photos)

    refused = client.post("/api/table/marks", content=body)

    assert refused.status_code == status
    assert refused.json()["error"]["message"].startswith(message)
    assert not photos.with_name("photos-marked").exists()


def test_other_pages_of_the_browser_cannot_mark(photos: Path) -> None:
    client = client_of(photos)
    body = {"row": 1, "label": "dog"}

    assert client.post("/api/table/marks", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/table/written", headers={"Origin": "http://evil.example"}).status_code == 403
    assert not photos.with_name("photos-marked").exists()


def test_images_may_be_elsewhere_or_nowhere(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "moved")

    nowhere = client_of(photos).get("/api/table").json()
    elsewhere = client_of(photos, images=str(tmp_path / "moved"))

    assert nowhere["images"] == "the images are not where the table says any more: name their place with --images"
    assert elsewhere.get("/api/table").json()["images"] is None
    assert elsewhere.get("/api/table/thumbnails/1").status_code == 200
    with pytest.raises(SourceError, match="must be a folder of images, got nothing there"):
        client_of(photos, images=str(tmp_path / "none"))


def test_images_and_marks_without_a_table_are_refused(tmp_path: Path) -> None:
    for more in ({"images": "photos"}, {"marked": tmp_path}):
        with pytest.raises(BadParameter, match="--table must be named where --images or --marked is, got none"):
            create_app(replace(Setup.of_nothing(), **more))


def test_table_that_changes_is_told_and_stays_as_it_was(photos: Path) -> None:
    client = client_of(photos)
    client.post("/api/table/marks", json={"row": 3, "label": "dog"})

    write_table(photos, [answer("new.png")])
    facts = client.get("/api/table").json()

    assert facts["rows"] == 13
    assert len(facts["notes"]) == 1
    assert facts["notes"][0].startswith("The table has changed since the console began")
    assert client.get("/api/table/rows").json()["total"] == 13


@pytest.mark.parametrize(
    ("address", "is_folder", "marked"),
    [
        ("/data/pets.parquet", False, "/data/pets-marked"),
        ("/data/v1.2", True, "/data/v1.2-marked"),
        ("memory://bucket/pets.jsonl", False, "pets-marked"),
    ],
)
def test_marks_lie_beside_the_table_or_here(address: str, is_folder: bool, marked: str) -> None:
    table = Table(place_of(address), is_folder, (), "parquet")

    assert str(default_marked(table)) == marked


def test_parts_that_are_yet_to_be_written_are_told(photos: Path, bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "bad.png").unlink()
    table = tmp_path / "parts"
    serving("score", tmp_path / "photos", "--bundle", bundle_dir, "--out", table, "--shard-images", 4, check=True)
    parts = sorted(table.glob("*.parquet"))
    parts[-1].unlink()

    facts = client_of(table).get("/api/table").json()

    assert len(parts) == 3
    assert facts["notes"] == ["1 part of the table must still be written: begin the console anew when score has ended."]
    assert facts["rows"] == 8
    assert facts["images"] is None


def test_marks_that_the_table_lacks_are_told(photos: Path) -> None:
    marks = Marks(photos.with_name("own"), photos.name, "before")
    for key in ("1.png", "stranger.png"):
        marks.set(key, "dog")
    marks.close()

    notes = client_of(photos, marked=photos.with_name("own")).get("/api/table").json()["notes"]

    assert notes == [
        "The table was written anew since the marks were made; they stay with their images.",
        "1 mark is of an image that this table does not have; nothing of it is lost.",
    ]
