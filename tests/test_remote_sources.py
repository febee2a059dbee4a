"""Sources and places by URL: S3 against moto's server, which speaks its protocol; fsspec against its own `memory://`."""

import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from serving.batch.engine import Layout
from serving.batch.listing import not_hidden
from serving.batch.local import LocalEngine
from serving.batch.options import ScoreOptions
from serving.batch.places import Info, place_of
from serving.batch.remote import RemotePlace
from serving.batch.score import score
from serving.batch.source import Item, Source, SourceError
from serving.batch.sources import open_source, reading, source_of
from serving.errors import ServingError

MAX_BYTES = 10_000
NAMES = ["a/x.png", "a/y/z.png", "a b.png", "b.jpg", "ä%20.png"]
Files = dict[str, bytes]
Put = Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str) -> Any:
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    bucket = client.create_bucket(Bucket="photos")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="photos"):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket="photos", Key=entry["Key"])
    assert bucket
    client.delete_bucket(Bucket="photos")
    client.close()


@pytest.fixture
def url(endpoint: str) -> Callable[[str], str]:
    """The URL of a path in the bucket."""
    return lambda path: f"s3://photos/{path}?endpoint_override={endpoint}&scheme=http&region=us-east-1"


@pytest.fixture
def put(s3: Any) -> Put:
    return lambda key, data: s3.put_object(Bucket="photos", Key=key, Body=data)


@pytest.fixture
def files(put: Put, images: list[bytes]) -> Files:
    """Images below `in/`, and some that are hidden."""
    files = dict(zip(NAMES, images, strict=False))
    for name, data in [*files.items(), (".hidden.png", b"no"), ("a/.cache/x.png", b"no")]:
        put(f"in/{name}", data)
    return files


def items_of(source: Source, images: int = 2) -> list[Item]:
    copy = source_of(pickle.loads(pickle.dumps(source)).description)
    shards = list(source.shards(images))
    assert list(copy.shards(images)) == shards
    return [item for shard in shards for item in copy.read(shard, MAX_BYTES)]


def contents(source: Source, images: int = 2) -> Files:
    return {item.key: item.image for item in items_of(source, images) if isinstance(item.image, bytes)}


def errors(items: list[Item]) -> dict[str, str]:
    return {item.key: f"{item.image.code}: {item.image}" for item in items if isinstance(item.image, ServingError)}


def test_a_folder_of_a_bucket(files: Files, url: Callable[[str], str], put: Put) -> None:
    source = open_source(url("in"))
    before = [shard.state for shard in source.shards(2)]

    assert list(contents(source).items()) == [(name, files[name]) for name in ("a/x.png", "a/y/z.png", *NAMES[2:])]
    assert source == open_source(url("in/"))
    assert source.description == {"kind": "folder", "place": url("in")}
    assert {item.key: item.image for item in source.find(["a b.png", "nowhere.png"], MAX_BYTES)} == {
        "a b.png": files["a b.png"]
    }
    put("in/a/x.png", b"other")
    assert [a == b.state for a, b in zip(before, source.shards(2), strict=True)] == [False, True, True]


def test_a_pattern_in_a_bucket(files: Files, url: Callable[[str], str]) -> None:
    source = open_source(url("in/**/*.png"))

    assert contents(source) == {name: data for name, data in files.items() if name != "b.jpg"}
    assert contents(open_source(url("in/{a b,b}.*"))) == {name: files[name] for name in ("a b.png", "b.jpg")}
    assert [item.key for item in source.find(["a/x.png", "b.jpg"], MAX_BYTES)] == ["a/x.png"]


def test_a_list_in_a_bucket_and_one_of_urls(files: Files, url: Callable[[str], str], put: Put, tmp_path: Path) -> None:
    put("in/list.txt", "a/x.png\n\nä%20.png\n".encode())
    (tmp_path / "list.txt").write_text(f"{url('in/b.jpg')}\n{url('in/a%20b.png')}\nhere.png\n")
    (tmp_path / "here.png").write_bytes(b"here")

    assert contents(open_source(url("in/list.txt")), 1) == {name: files[name] for name in ("a/x.png", "ä%20.png")}
    assert list(contents(open_source(str(tmp_path / "list.txt"))).values()) == [
        files["b.jpg"],
        files["a b.png"],
        b"here",
    ]


def test_tars_in_a_bucket_are_read_as_streams(images: list[bytes], url: Callable[[str], str], put: Put) -> None:
    expected = {}
    for number, mode in enumerate(["w", "w:gz"]):
        stream, suffix = io.BytesIO(), ".gz" if mode == "w:gz" else ""
        with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
            for index, data in enumerate(images):
                member = tarfile.TarInfo(f"{index}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                expected[f"{number}.tar{suffix}/{index}.png"] = data
        put(f"tars/{number}.tar{suffix}", stream.getvalue())
    source = open_source(url("tars"))

    assert [shard.images for shard in source.shards(3)] == [None, None]
    assert list(contents(source).items()) == list(expected.items())
    assert [item.key for item in source.find(["1.tar.gz/7.png"], MAX_BYTES)] == ["1.tar.gz/7.png"]
    put("tars/0.tar", b"short")
    with pytest.raises(
        SourceError, match=r"tars/0\.tar\?\S+ must be a whole tar, got a broken one, before its first member"
    ):
        items_of(source)


def test_tables_in_a_bucket(files: Files, url: Callable[[str], str], put: Put, images: list[bytes]) -> None:
    rows = [{"bytes": images[0], "path": None}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": "no.png"}]
    table = pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    pq.write_table(table, stream := io.BytesIO())
    put("in/a.parquet", stream.getvalue())
    source = open_source(url("in/a.parquet"))

    assert contents(source) == {"a.parquet#0": images[0], "b.jpg": files["b.jpg"]}
    assert errors(items_of(source))["no.png"].startswith(
        "unreadable_file: image must be a file that can be read, got: "
    )
    put("in/a.parquet", stream.getvalue()[:-9])
    with pytest.raises(SourceError, match=r"a\.parquet\?\S+ must be a whole Parquet file, got a broken one"):
        list(source.shards(3))


def test_arrays_in_a_bucket(url: Callable[[str], str], put: Put) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (5, 3, 2), dtype=np.uint8)
    np.save(stream := io.BytesIO(), pixels)
    put("a.npy", stream.getvalue())
    put("t10k-images-idx3-ubyte", struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())

    for name in ("a.npy", "t10k-images-idx3-ubyte"):
        items = items_of(open_source(url(name)))
        assert [item.key for item in items] == [f"{name}#{index}" for index in range(5)]
        assert np.array_equal(np.stack([item.image for item in items]), pixels[..., None])


def test_an_object_that_is_gone_or_too_large(files: Files, url: Callable[[str], str], put: Put, s3: Any) -> None:
    source = open_source(url("in"))
    [shard] = source.shards(100)
    s3.delete_object(Bucket="photos", Key="in/a b.png")
    put("in/b.jpg", bytes(MAX_BYTES + 1))
    items = list(source.read(shard, MAX_BYTES))

    assert [item.key for item in items] == ["a/x.png", "a/y/z.png", *NAMES[2:]]
    assert errors(items) == {
        "a b.png": "unreadable_file: image must be a file that can be read, got: "
        "Path does not exist 'photos/in/a b.png'",
        "b.jpg": f"image_too_large: image must have at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}",
    }


def test_a_folder_of_a_bucket_that_vanishes(files: Files, url: Callable[[str], str], s3: Any) -> None:
    source = open_source(url("in"))
    [shard] = source.shards(100)
    for entry in s3.list_objects_v2(Bucket="photos")["Contents"]:
        s3.delete_object(Bucket="photos", Key=entry["Key"])

    with pytest.raises(
        SourceError, match=r"the source of a/x\.png must stay where it is, got nothing there: put it back"
    ):
        list(source.read(shard, MAX_BYTES))
    with pytest.raises(SourceError, match=r"in\?\S+ must be a folder of images, got nothing there"):
        list(source.shards(3))


@pytest.mark.usefixtures("endpoint")  # for its variables
def test_a_server_that_goes_away_is_an_error_of_the_source(images: list[bytes]) -> None:
    """An S3 server of its own, which stops once the shards are known."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="short")
    client.put_object(Bucket="short", Key="in/a.png", Body=images[0])
    client.close()
    source = open_source(f"s3://short/in?endpoint_override={host}:{port}&scheme=http&region=us-east-1")
    [shard] = source.shards(3)
    server.stop()

    with pytest.raises(SourceError, match=r"^a\.png must be readable, got OSError: "):
        list(source.read(shard, MAX_BYTES))


def test_an_object_that_may_not_be_read(
    files: Files, url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server here lets everybody read, so its refusal is made up, in pyarrow's words."""
    source = open_source(url("in"))
    [shard] = source.shards(100)
    refusal = OSError(
        "When reading information for key 'in/b.jpg': AWS Error ACCESS_DENIED during HeadObject operation"
    )
    real_read = RemotePlace.read

    def refused(place: RemotePlace, max_bytes: int | None = None) -> bytes:
        if place.name == "b.jpg":
            raise refusal
        return real_read(place, max_bytes)

    monkeypatch.setattr(RemotePlace, "read", refused)
    assert errors(list(source.read(shard, MAX_BYTES))) == {
        "b.jpg": f"unreadable_file: image must be a file that can be read, got: {refusal}"
    }

    def refused_too(place: RemotePlace) -> Info | None:
        raise OSError("AWS Error ACCESS_DENIED during HeadObject operation")

    monkeypatch.setattr(RemotePlace, "info", refused_too)  # so the credentials are at fault
    with pytest.raises(
        SourceError, match=r"the source of b\.jpg must be readable, got OSError: AWS Error ACCESS_DENIED"
    ):
        list(source.read(shard, MAX_BYTES))


def test_files_are_written_whole_to_a_bucket(url: Callable[[str], str], s3: Any) -> None:
    place = place_of(url("out/new")).child("a.bin")
    large = bytes(range(256)) * 100_000

    def half(out: BinaryIO) -> None:
        out.write(large)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        place.write(half)
    assert not place.exists()
    assert [entry.path for entry in place_of(url("")).walk(not_hidden)] == []
    place.write(lambda out: out.write(large))
    assert s3.get_object(Bucket="photos", Key="out/new/a.bin")["Body"].read() == large
    assert place.info().size == len(large)  # type: ignore[union-attr]
    assert [entry.path for entry in place_of(url("out")).walk(not_hidden)] == [b"new/a.bin"]
    with place.open() as file:
        file.seek(1000)
        assert file.read(7) == large[1000:1007]
    place.delete()
    place.delete()
    assert not place.exists()


@pytest.fixture
def memory(images: list[bytes]) -> Iterator[Files]:
    """Images in fsspec's memory, and one that is hidden."""
    system = fsspec.filesystem("memory")
    files = dict(zip(NAMES, images, strict=False))
    for name, data in [*files.items(), (".hidden.png", b"no")]:
        system.pipe(f"/in/{name}", data)
    yield files
    system.rm("/in", recursive=True)


def test_other_file_systems_go_through_fsspec(memory: Files) -> None:
    source = open_source("memory://in")
    [shard] = source.shards(100)

    assert contents(source) == memory
    assert contents(open_source("memory://in/**/*.jpg")) == {"b.jpg": memory["b.jpg"]}
    fsspec.filesystem("memory").rm("/in/b.jpg")
    assert list(errors(list(source.read(shard, MAX_BYTES)))) == ["b.jpg"]


def test_files_are_moved_into_their_place_where_they_could_be_seen_half(memory: Files) -> None:
    place = place_of("memory://in/new/a.bin")
    place.write(lambda out: out.write(b"old"))
    place.write(lambda out: out.write(b"new"))

    assert fsspec.filesystem("memory").cat("/in/new/a.bin") == b"new"
    assert [entry.path for entry in place_of("memory://in/new").walk(lambda *_: True)] == [b"a.bin"]
    place.delete()
    assert not place.exists()


def test_reading_ahead_keeps_the_order_and_its_bounds() -> None:
    begun, handed_over = [], 0

    def read(number: int) -> Item:
        begun.append(number)
        return Item(str(number), bytes(1000))

    for number, item in enumerate(reading.read_ahead(read, range(1000))):
        assert item.key == str(number)
        assert len(begun) - handed_over <= reading.AHEAD
        handed_over += 1
    assert handed_over == 1000
    assert sorted(begun) == list(range(1000))


def test_reading_ahead_stops_at_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AHEAD_BYTES", 10_000)
    begun = []

    def read(number: int) -> Item:
        begun.append(number)
        return Item(str(number), bytes(5000))

    items = reading.read_ahead(read, range(1000))
    for _ in range(500):
        next(items)
    items.close()  # type: ignore[attr-defined]

    assert len(begun) <= 500 + 2 + reading.READERS


def test_reading_ahead_gives_what_came_before_an_error() -> None:
    def read(number: int) -> Item:
        if number == 5:
            raise SourceError("broken")
        return Item(str(number), b"")

    items = reading.read_ahead(read, range(10))
    assert [next(items).key for _ in range(5)] == list("01234")
    with pytest.raises(SourceError, match="broken"):
        next(items)


def test_a_bucket_is_scored_into_itself(
    files: Files, url: Callable[[str], str], s3: Any, bundle_dir: Path, tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    options, engine = ScoreOptions(batch_size=2, shard_images=2), LocalEngine(Layout(1))
    score(open_source(str(tmp_path / "in")), bundle_dir, str(tmp_path / "out.parquet"), options, engine=engine)
    wanted = pq.read_table(tmp_path / "out.parquet")

    for out in ("answers", "answers.parquet"):
        first = score(open_source(url("in")), bundle_dir, url(out), options, engine=engine)
        second = score(open_source(url("in")), bundle_dir, url(out), options, engine=engine)
        assert (first.images, second.images) == (5, 0)
    system, path = RemotePlace(url("")).opened
    assert pq.read_table(f"{path}/answers", filesystem=system).equals(wanted)
    assert pq.read_table(f"{path}/answers.parquet", filesystem=system).equals(wanted)
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket="photos", Prefix="answers")["Contents"]]
    assert [key for key in listed if not key.endswith("/")] == [
        "answers.parquet",
        *(f"answers/_job/done/{number}.json" for number in range(3)),
        *(f"answers/_job/{name}" for name in ("job.json", "shards.jsonl")),
        *(f"answers/part-000000{number}.parquet" for number in range(3)),
    ]
