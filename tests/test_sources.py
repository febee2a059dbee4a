import gzip
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch import listing
from serving.batch.listing import not_hidden, sorted_names
from serving.batch.places import LocalPlace, PlaceError, place_of
from serving.batch.source import Item, Shard, Source, SourceError, UnreadableFile
from serving.batch.sources import array as array_module
from serving.batch.sources import open_source, parquet_rows, source_of
from serving.batch.sources import packing as packing_module
from serving.batch.sources import parquet as parquet_module
from serving.errors import ImageTooLarge, ServingError

MAX_BYTES = 10_000
Files = dict[str, bytes]


@pytest.fixture
def files(images: list[bytes]) -> Files:
    """Images by relative paths, in the order in which they must come: a folder before a file that begins like it."""
    names = ["a/x.png", "a/y/z.png", "a.png", "a0.png", "b.jpg", "sub/deep/er/c.PNG", "sub/ä.png", "z.png"]
    return dict(zip(names, images, strict=True))


@pytest.fixture
def folder(files: Files, tmp_path: Path) -> Path:
    """These, and files that are hidden."""
    root = tmp_path / "images"
    for name, data in reversed([*files.items(), (".hidden.png", b"no"), ("sub/.cache/x.png", b"no")]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path: Path, files: Files, mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=kind) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def items_of(source: Source, images: int = 3, max_bytes: int = MAX_BYTES) -> list[Item]:
    """All items, by shards that went through JSON and another process's memory."""
    copy = source_of(json.loads(json.dumps(pickle.loads(pickle.dumps(source)).description)))
    assert copy == source
    shards = [Shard(json.loads(json.dumps(shard.where)), shard.state, shard.images) for shard in source.shards(images)]
    assert shards == list(copy.shards(images)), "shards are the same every time"
    found = [(shard, list(copy.read(shard, max_bytes))) for shard in shards]
    assert all(shard.images in (None, len(items)) for shard, items in found)
    assert all(len(items) <= images for shard, items in found if shard.images is not None)
    return [item for _, items in found for item in items]


def contents(source: Source, images: int = 3) -> Files:
    items = items_of(source, images)
    assert all(isinstance(item.image, bytes) for item in items)
    assert len({item.key for item in items}) == len(items), "keys are unique"
    return {item.key: item.image for item in items if isinstance(item.image, bytes)}


def states(source: Source) -> list[str]:
    return [shard.state for shard in source.shards(3)]


def found(source: Source, *keys: str) -> dict[str, Any]:
    return {item.key: item.image for item in source.find(keys, MAX_BYTES)}


def errors(items: list[Item]) -> dict[str, str]:
    return {item.key: f"{item.image.code}: {item.image}" for item in items if isinstance(item.image, ServingError)}


# Folders


def test_a_folder_gives_its_files_in_the_order_of_their_parts(folder: Path, files: Files) -> None:
    got = contents(open_source(str(folder)))

    assert list(got.items()) == list(files.items())


def test_a_folder_under_another_working_directory_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    relative = open_source("images")
    monkeypatch.chdir("/")

    assert relative == open_source(f"{folder}/") == open_source(folder.as_uri())
    assert relative.description == {"kind": "folder", "place": str(folder)}


def test_a_folder_finds_images_by_their_keys(folder: Path, files: Files) -> None:
    keys = ["sub/ä.png", "a.png", "nowhere.png", ".hidden.png", "sub/.cache/x.png", "../images/a.png", "sub", ""]

    assert found(open_source(str(folder)), *keys) == {key: files[key] for key in ("sub/ä.png", "a.png")}


def test_a_change_of_a_folder_changes_the_state_of_its_shard(folder: Path) -> None:
    source = open_source(str(folder))
    before = states(source)

    os.utime(folder / "a.png", ns=(0, 12345))
    touched = states(source)
    (folder / "a.png").write_bytes(b"other size")
    os.utime(folder / "a.png", ns=(0, 12345))
    other = states(source)
    (folder / "zz.png").write_bytes(b"new")
    added = states(source)
    (folder / "zz.png").unlink()
    (folder / "a.png").unlink()
    removed = states(source)
    assert [a == b for a, b in zip(before, touched, strict=True)] == [False, True, True]
    assert [a == b for a, b in zip(touched, other, strict=True)] == [False, True, True]
    assert [a == b for a, b in zip(other, added, strict=True)] == [True, True, False]
    assert removed[0] != added[0]


def test_names_that_are_not_utf_8_survive(tmp_path: Path, images: list[bytes]) -> None:
    for name, data in zip([b"\xff.png", b"\xe9t\xe9/\xfe.png", b"back\\xff.png"], images, strict=False):
        path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(data)
    source = open_source(str(tmp_path))
    got = contents(source)

    assert got == {"\\xe9t\\xe9/\\xfe.png": images[1], "\\xff.png": images[0], "back\\xff.png": images[2]}
    assert found(source, *got) == got


def test_links_to_files_are_followed_and_links_to_folders_are_not(folder: Path, files: Files, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to(folder / "z.png")
    (folder / "loop").symlink_to(folder)
    (folder / "nothing.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    items = {item.key: item.image for item in items_of(open_source(str(folder)))}

    assert set(items) == {*files, "link.png", "nothing.png"}
    assert items["link.png"] == files["z.png"]
    assert isinstance(items["nothing.png"], UnreadableFile)


def test_shards_end_at_their_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    sizes = [len(data) for data in files.values()]
    monkeypatch.setattr(packing_module, "SHARD_BYTES", sizes[0] + sizes[1])

    assert next(open_source(str(folder)).shards(100)).images == 2
    assert list(contents(open_source(str(folder)), 100)) == list(files)


def test_an_image_that_is_gone_or_may_not_be_read_or_is_too_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    source = open_source(str(folder))
    [shard] = source.shards(100)
    (folder / "a.png").unlink()
    (folder / "a0.png").unlink()
    (folder / "a0.png").mkdir()
    (folder / "b.jpg").write_bytes(bytes(MAX_BYTES + 1))
    (folder / "z.png").unlink()
    os.mkfifo(folder / "z.png")
    real_open = os.open

    def refused(path: bytes, *options: Any) -> int:  # root may read everything
        if path.endswith(b"x.png"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *options)

    monkeypatch.setattr("os.open", refused)
    items = list(source.read(shard, MAX_BYTES))
    assert [item.key for item in items] == list(files)
    assert errors(items) == {
        "a/x.png": "unreadable_file: image must be a file that can be read, got: Permission denied",
        "a.png": "unreadable_file: image must be a file that can be read, got: No such file or directory",
        "a0.png": "unreadable_file: image must be a file that can be read, got: Is a folder, a pipe or a device",
        "b.jpg": f"image_too_large: image must have at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}",
        "z.png": "unreadable_file: image must be a file that can be read, got: Is a folder, a pipe or a device",
    }


@pytest.mark.parametrize("vanish", [shutil.rmtree, lambda root: (shutil.rmtree(root), root.mkdir())])
def test_a_folder_that_vanishes_is_an_error_of_the_source(folder: Path, vanish: Callable[[Path], object]) -> None:
    source = open_source(str(folder))
    [shard] = source.shards(100)
    read = source.read(shard, MAX_BYTES)
    first = next(read)
    vanish(folder)

    assert first.key == "a/x.png"
    with pytest.raises(SourceError, match=r"the source of a/y/z\.png must stay where it is, got nothing there"):
        next(read)


def test_an_error_of_the_disk_names_the_image(folder: Path, monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    source = open_source(str(folder))
    [shard] = source.shards(100)
    real_read = os.read

    def broken(descriptor: int, size: int) -> bytes:
        if size == len(files["a.png"]) and os.fstat(descriptor).st_ino == (folder / "a.png").stat().st_ino:
            raise OSError(5, "Input/output error")
        return real_read(descriptor, size)

    monkeypatch.setattr("os.read", broken)
    read = source.read(shard, MAX_BYTES)
    assert [next(read).key, next(read).key] == ["a/x.png", "a/y/z.png"]
    with pytest.raises(SourceError, match=r"^a\.png must be readable, got OSError: \[Errno 5\] Input/output error"):
        next(read)


def test_a_folder_that_may_not_be_listed_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_scandir = os.scandir

    def refused(path: Any) -> Any:
        if isinstance(path, bytes) and path.endswith(b"deep"):
            raise PermissionError(13, "Permission denied", path)
        return real_scandir(path)

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(SourceError, match=r"images must be readable, got PermissionError: .*Permission denied.*deep"):
        list(open_source(str(folder)).shards(100))


def test_no_folder_or_no_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(SourceError, match=r"nowhere must be a folder of images, got nothing there$"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"nowhere must be a folder of images, got nothing there$"):
        list(open_source(str(tmp_path / "nowhere"), kind="folder").shards(3))
    with pytest.raises(SourceError, match=r"a.png must be a folder of images, got a file$"):
        list(open_source(str(folder / "a.png"), kind="folder").shards(3))
    with pytest.raises(SourceError, match=r"empty must hold at least one file, got none$"):
        list(open_source(str(tmp_path / "empty")).shards(3))


class FakeEntry:
    """What `os.scandir` gives for a plain file."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return False

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return True


def test_a_folder_of_very_many_files_takes_little_more_than_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system's answers are made up, as so many files cannot be made here; ten million take ten times as much."""
    count, name_bytes = 200_000, 20

    class Scan:
        def __enter__(self) -> Iterator[FakeEntry]:
            return (FakeEntry(b"%016d.png" % (number * 7919 % count)) for number in range(count))

        def __exit__(self, *_: object) -> None:
            pass

    status = Path("/").stat()
    monkeypatch.setattr(listing.os, "scandir", lambda path: Scan())
    monkeypatch.setattr(listing.os, "stat", lambda path: status)
    tracemalloc.start()
    try:
        seen = sum(1 for _ in LocalPlace("/images").walk(not_hidden))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert seen == count
    assert peak < 12e6 + count * (name_bytes + 2)  # the first is a run, which is as large for any number of files
    assert 12e6 + 10_000_000 * (name_bytes + 2) < 600e6


def test_names_are_sorted_over_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "RUN_NAMES", 64)
    monkeypatch.setattr(listing, "PACK_NAMES", 7)
    names = [b"%d\xff" % number for number in np.random.default_rng(5).permutation(1000)]

    assert list(sorted_names(names)) == sorted(names)
    assert list(sorted_names([])) == []


# Patterns and lists


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.png", ["a/x.png", "a/y/z.png", "a.png", "a0.png", "sub/ä.png", "z.png"]),
        ("*.png", ["a.png", "a0.png", "z.png"]),
        ("*", ["a.png", "a0.png", "b.jpg", "z.png"]),
        ("**", ["a/x.png", "a/y/z.png", "a.png", "a0.png", "b.jpg", "sub/deep/er/c.PNG", "sub/ä.png", "z.png"]),
        ("a?.png", ["a0.png"]),
        ("[a-b].*", ["a.png", "b.jpg"]),
        ("*/*.png", ["a/x.png", "sub/ä.png"]),
        ("**/y/*", ["a/y/z.png"]),
        ("{a,z}.png", ["a.png", "z.png"]),
        ("a{0..0}.png", ["a0.png"]),
        ("{a,sub}/**/*.{png,PNG}", ["a/x.png", "a/y/z.png", "sub/deep/er/c.PNG", "sub/ä.png"]),
        (".*.png", [".hidden.png"]),
        ("*/.cache/*", ["sub/.cache/x.png"]),
    ],
)
def test_a_pattern_gives_what_it_matches(pattern: str, names: list[str], folder: Path) -> None:
    source = open_source(str(folder / pattern))
    got = contents(source)

    assert list(got) == names
    assert all(data == (folder / name).read_bytes() for name, data in got.items())
    assert found(source, *names, "a/nowhere.png") == got


def test_keys_are_relative_to_what_a_pattern_has_fixed(folder: Path, files: Files) -> None:
    source = open_source(str(folder / "sub" / "deep" / "*" / "*.PNG"))

    assert contents(source) == {"er/c.PNG": files["sub/deep/er/c.PNG"]}
    assert found(source, "er/c.PNG", "c.PNG", "../../a.png") == contents(source)
    assert source.description == {"kind": "glob", "place": str(folder / "sub" / "deep" / "*" / "*.PNG")}


def test_ranges_are_those_of_webdataset(tmp_path: Path, images: list[bytes]) -> None:
    for number, data in enumerate(images):
        (tmp_path / f"{number + 7:03}.png").write_bytes(data)

    assert list(contents(open_source(str(tmp_path / "{008..011}.png")))) == ["008.png", "009.png", "010.png", "011.png"]
    with pytest.raises(SourceError, match=r"/015\.png must exist, as \{013\.\.015\}\.png names it, got nothing there"):
        list(open_source(str(tmp_path / "{013..015}.png")).shards(3))


def test_patterns_that_are_none_or_match_nothing(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"images/\*\.gif must match at least one file, got none"):
        list(open_source(str(folder / "*.gif")).shards(3))
    with pytest.raises(SourceError, match=r"nowhere must be a folder of images, got nothing there"):
        list(open_source(str(folder / "nowhere" / "*")).shards(3))
    with pytest.raises(SourceError, match=r"braces must be a range such as \{000\.\.099\} or a list .* got \{abc\}$"):
        list(open_source(str(folder / "{abc}.png")).shards(3))
    with pytest.raises(SourceError, match=r"braces must stand for at most 100,000 paths, got more"):
        list(open_source(str(folder / "{1..9999999}.png")).shards(3))
    with pytest.raises(SourceError, match=r"must have a wildcard such as \* to be a pattern, got none"):
        open_source(str(folder), kind="glob")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(images: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "[0]").mkdir()
    (tmp_path / "[0]" / "a.png").write_bytes(images[0])

    assert contents(open_source(str(tmp_path / "[0]"))) == {"a.png": images[0]}


@pytest.fixture
def text(folder: Path, files: Files) -> Path:
    lines = ["a.png", "", "sub/ä.png\r", "  ", str(folder / "z.png"), (folder / "b.jpg").as_uri(), "../images/a/x.png"]
    path = folder / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    return path


def test_a_text_names_files_one_a_line(text: Path, folder: Path, files: Files) -> None:
    source = open_source(str(text))
    got = contents(source, 2)

    assert got == {
        "a.png": files["a.png"],
        "sub/ä.png": files["sub/ä.png"],
        str(folder / "z.png"): files["z.png"],
        (folder / "b.jpg").as_uri(): files["b.jpg"],
        "../images/a/x.png": files["a/x.png"],
    }
    assert next(iter(got)) == "a.png"
    assert found(source, "sub/ä.png", "z.png") == {"sub/ä.png": files["sub/ä.png"]}


def test_a_change_of_a_list_or_of_its_files_changes_a_state(text: Path, folder: Path) -> None:
    source = open_source(str(text))
    before = states(source)

    os.utime(folder / "a.png", ns=(0, 12345))
    touched = states(source)
    text.write_bytes(text.read_bytes() + b"\na/y/z.png\n")
    assert [a == b for a, b in zip(before, touched, strict=True)] == [False, True]
    assert [a == b for a, b in zip(touched, states(source), strict=True)] == [True, False]


def test_a_list_with_errors(text: Path, folder: Path, files: Files, tmp_path: Path) -> None:
    source = open_source(str(text))
    shards = list(source.shards(100))
    (folder / "a.png").unlink()
    items = list(source.read(shards[0], MAX_BYTES))

    assert errors(items) == {
        "a.png": "unreadable_file: image must be a file that can be read, got: No such file or directory"
    }
    text.write_bytes(b"a.png\n")
    with pytest.raises(SourceError, match=r"list\.txt must have the images that it had at first, got fewer"):
        list(source.read(shards[0], MAX_BYTES))
    text.write_bytes(b"\n\n")
    with pytest.raises(SourceError, match=r"list\.txt must name at least one file, got none"):
        list(source.shards(3))
    text.write_bytes(b"a.png\n" + bytes(40_000))
    with pytest.raises(SourceError, match=r"list\.txt must be a text of one path a line, got at byte 6: b'"):
        list(source.shards(3))
    text.unlink()
    with pytest.raises(SourceError, match=r"list\.txt must be readable, got FileNotFoundError"):
        source.read(shards[0], MAX_BYTES)
    with pytest.raises(SourceError, match=r"list\.txt must be a folder of images, got nothing there"):
        open_source(str(text))


# Tars


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_its_images(kind: int, files: Files, tmp_path: Path, images: list[bytes]) -> None:
    long = "l" * 90 + "/" + ("n" * 60 if kind == tarfile.USTAR_FORMAT else "n" * 120) + ".jpeg"
    members = files | {"a.json": b"{}", "./dot.webp": images[0], long: images[1]}
    path = write_tar(tmp_path / "one.tar", members, kind=kind)
    source = open_source(str(path))
    got = contents(source)

    images_in = {name.removeprefix("./"): data for name, data in members.items() if name != "a.json"}
    assert list(got.items()) == [(f"one.tar/{name}", data) for name, data in images_in.items()]
    assert found(source, "one.tar/b.jpg", "one.tar/a.json", "b.jpg") == {"one.tar/b.jpg": files["b.jpg"]}
    assert source.description == {"kind": "tar", "place": str(path)}


def test_a_tar_as_other_programs_write_it(folder: Path, files: Files, tmp_path: Path) -> None:
    times = {name: index + 0.25 for index, name in enumerate(files)}  # pax records for every member
    with tarfile.open(tmp_path / "python.tar", "w") as tar:
        for name in files:
            os.utime(folder / name, (0, times[name]))
            tar.add(folder / name, name)
    tops = sorted({f"./{name.partition('/')[0]}" for name in files})
    for program in ("gnu", "posix", "v7"):
        subprocess.run(
            ["tar", f"--format={program}", "-cf", tmp_path / f"{program}.tar", "--exclude=.cache", *tops],
            cwd=folder,
            check=True,
        )
    got = contents(open_source(str(tmp_path / "*.tar")))

    assert got == {
        f"{tar}.tar/{name}": data for tar in ("gnu", "posix", "python", "v7") for name, data in files.items()
    }


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_a_compressed_tar_is_one_shard(suffix: str, files: Files, tmp_path: Path) -> None:
    source = open_source(str(write_tar(tmp_path / f"one{suffix}", files, "w:gz")))

    assert [shard.images for shard in source.shards(3)] == [None]
    assert contents(source) == {f"one{suffix}/{name}": data for name, data in files.items()}
    assert found(source, f"one{suffix}/b.jpg") == {f"one{suffix}/b.jpg": files["b.jpg"]}


@pytest.mark.parametrize("place", [".", "train-*.tar", "train-{000..001}.tar"])
def test_many_tars(place: str, files: Files, tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"train-{number:03}.tar", files)
    (tmp_path / "index.json").write_bytes(b"{}")
    source = open_source(str(tmp_path / place))
    before = states(source)

    assert list(contents(source)) == [f"train-{number:03}.tar/{name}" for number in range(2) for name in files]
    assert set(found(source, "train-001.tar/b.jpg")) == {"train-001.tar/b.jpg"}
    os.utime(tmp_path / "train-001.tar", ns=(0, 12345))
    assert [a == b for a, b in zip(before, states(source), strict=True)] == [True] * 3 + [False] * 3


def test_a_member_that_is_too_large_or_a_link(tmp_path: Path, images: list[bytes]) -> None:
    path = write_tar(tmp_path / "one.tar", {"a.png": bytes(MAX_BYTES + 1), "b.png": images[0]})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "b.png"
        tar.addfile(link)
    items = items_of(open_source(str(path)))

    assert [item.key for item in items] == ["one.tar/a.png", "one.tar/b.png", "one.tar/link.png"]
    assert items[1].image == images[0]
    assert errors(items) == {
        "one.tar/a.png": f"image_too_large: image must have at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}",
        "one.tar/link.png": "unreadable_file: image must be a file of the tar, got a link or the like",
    }


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_breaks_off_names_its_last_whole_member(mode: str, files: Files, tmp_path: Path) -> None:
    path = write_tar(tmp_path / ("one.tar.gz" if mode == "w:gz" else "one.tar"), files, mode)
    whole = path.read_bytes()
    source = open_source(str(path))
    [shard] = source.shards(100)
    path.write_bytes(whole[: len(whole) // 2] if mode == "w:gz" else whole[: 512 * 2 * 3 + 512 + 20])  # in the fourth
    read = source.read(shard, MAX_BYTES)
    got = []

    with pytest.raises(
        SourceError, match=r"must be a whole tar, got a broken one, after \S+\.(png|jpg|PNG): "
    ) as raised:
        got.extend(item.key for item in read)
    assert got == [f"{path.name}/{name}" for name in list(files)[: len(got)]]
    assert f"after {list(files)[len(got) - 1]}:" in str(raised.value)
    if mode == "w":
        assert len(got) == 3
        with pytest.raises(
            SourceError, match=r"one\.tar must be a whole tar, got a broken one, after a\.png: it breaks"
        ):
            list(source.shards(100))


@pytest.mark.parametrize("cut", [0, 100, 1024])
def test_a_tar_without_its_end_breaks_off(cut: int, files: Files, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", dict(list(files.items())[:1]))
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(SourceError, match=r"must be a whole tar, got a broken one, (before its first|after a/x\.png)"):
        list(open_source(str(path)).shards(3))


def test_a_tar_that_is_none_or_has_no_images(files: Files, tmp_path: Path) -> None:
    (tmp_path / "none.tar").write_bytes(b"hello" * 1000)
    write_tar(tmp_path / "empty.tar", {"a.json": b"{}"})
    (tmp_path / "plain.tgz").write_bytes(b"hello" * 1000)
    write_tar(tmp_path / "train-000.tar", files)
    plain = open_source(str(tmp_path / "plain.tgz"))

    with pytest.raises(
        SourceError, match=r"none\.tar must be a whole tar, .* before its first member: a header has no number"
    ):
        list(open_source(str(tmp_path / "none.tar")).shards(3))
    with pytest.raises(SourceError, match=r"empty\.tar must hold at least one image, got none"):
        list(open_source(str(tmp_path / "empty.tar")).shards(3))
    with pytest.raises(SourceError, match=r"plain\.tgz must be a whole tar, .* before its first member: Not a gzipped"):
        list(plain.read(next(plain.shards(3)), MAX_BYTES))
    with pytest.raises(SourceError, match=r"train-001\.tar must exist, as train-\{000\.\.001\}\.tar names it"):
        list(open_source(str(tmp_path / "train-{000..001}.tar")).shards(3))


def test_a_tar_that_vanishes_is_an_error_of_the_source(files: Files, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", files)
    source = open_source(str(path))
    [shard] = source.shards(100)
    path.unlink()

    with pytest.raises(SourceError, match=r"one\.tar must be a file or a folder, got nothing there"):
        list(source.read(shard, MAX_BYTES))


# Arrays


@pytest.mark.parametrize("shape", [(10, 5, 4), (10, 5, 4, 1), (10, 5, 4, 3)])
def test_an_npy_gives_its_pixels(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_module, "READ_BYTES", 50)  # several reads a shard
    pixels = np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "digits.npy", pixels)
    source = open_source(str(tmp_path / "digits.npy"))
    items = items_of(source, 4)

    assert [item.key for item in items] == [f"digits.npy#{index}" for index in range(10)]
    assert np.array_equal(np.stack([item.image for item in items]), pixels.reshape(10, 5, 4, -1))
    assert np.array_equal(
        found(source, "digits.npy#7", "digits.npy#10", "digits.npy#x")["digits.npy#7"], items[7].image
    )
    assert [shard.images for shard in source.shards(4)] == [4, 4, 2]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_gives_its_pixels(suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (10, 5, 4), dtype=np.uint8)
    data = struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    items = items_of(open_source(str(path)))

    assert np.array_equal(np.stack([item.image for item in items]), pixels[..., None])
    assert items[3].key == f"{path.name}#3"


def test_a_change_of_an_array_changes_its_states(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2, 2), np.uint8))
    source = open_source(str(tmp_path / "a.npy"))
    before = states(source)

    os.utime(tmp_path / "a.npy", ns=(0, 12345))
    assert not set(before) & set(states(source))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 3), np.float32), r"uint8 images, got something else: it holds float32; save it as uint8"),
        (np.zeros((2, 3, 3), np.uint8, order="F"), r"its order is Fortran's; save numpy\.ascontiguousarray of it"),
        (np.zeros((2, 3), np.uint8), r"shape \(N, H, W\) or \(N, H, W, C\) with C = 1 or 3, got \(2, 3\)"),
        (np.zeros((2, 3, 3, 4), np.uint8), r"with C = 1 or 3, got \(2, 3, 3, 4\)"),
        (np.zeros((0, 3, 3), np.uint8), r"a\.npy must hold at least one image, got none"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)

    with pytest.raises(SourceError, match=message):
        list(open_source(str(tmp_path / "a.npy")).shards(3))


def test_an_array_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 2, 2), np.uint8))
    source = open_source(str(path))
    shards = list(source.shards(3))
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(SourceError, match=r"a\.npy must have 144 bytes for its 4 images, got 143: copy it again"):
        list(source.shards(3))
    with pytest.raises(SourceError, match=r"a\.npy must have 4 images, got a file that breaks off: 3"):
        list(source.read(shards[1], MAX_BYTES))
    path.write_bytes(b"hello")
    with pytest.raises(SourceError, match=r"must be a \.npy or IDX file of uint8 images, got something else"):
        list(source.shards(3))


# Parquet

HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_column_of_bytes(files: Files, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"label": [0] * 8, "data": list(files.values())}, row_group_size=5)
    source = open_source(str(path))
    got = contents(source)

    assert list(got.items()) == [(f"a.parquet#{row}", data) for row, data in enumerate(files.values())]
    assert source.description == {"kind": "parquet", "place": str(path), "column": "data", "key_column": None}
    assert found(source, "a.parquet#6", "a.parquet#8") == {"a.parquet#6": got["a.parquet#6"]}


@pytest.mark.parametrize(
    "keys", [list("abcdefgh"), list(range(10, 18)), pa.array(list("abcdefgh")).dictionary_encode()]
)
def test_a_column_of_keys(keys: Any, files: Files, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"data": list(files.values()), "id": keys})
    source = open_source(str(path), key_column="id")
    got = contents(source)

    texts = [str(key) for key in (keys.to_pylist() if isinstance(keys, pa.Array) else keys)]
    assert list(got.items()) == list(zip(texts, files.values(), strict=True))
    assert found(source, texts[5]) == {texts[5]: got[texts[5]]}


def test_hugging_faces_images(folder: Path, files: Files, images: list[bytes]) -> None:
    rows = [
        {"bytes": images[0], "path": "x.png"},
        {"bytes": images[1], "path": None},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": str(folder / "z.png")},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "nowhere.png"},
        {"bytes": bytes(MAX_BYTES + 1), "path": "large.png"},
    ]
    path = write_parquet(folder / "a.parquet", {"image": pa.array(rows, HUGGING_FACE), "label": [1] * 8})
    source = open_source(str(path))
    items = items_of(source)

    assert {item.key: item.image for item in items if isinstance(item.image, bytes)} == {
        "x.png": images[0],
        "a.parquet#1": images[1],
        "b.jpg": files["b.jpg"],
        str(folder / "z.png"): files["z.png"],
    }
    assert errors(items) == {
        "a.parquet#4": "unreadable_file: row must hold an image's bytes or its path, got null",
        "a.parquet#5": "unreadable_file: row must hold an image's bytes or its path, got null",
        "nowhere.png": "unreadable_file: image must be a file that can be read, got: No such file or directory",
        "large.png": f"image_too_large: image must have at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}",
    }
    assert found(source, "b.jpg", "a.parquet#1") == {"b.jpg": files["b.jpg"], "a.parquet#1": images[1]}


@pytest.mark.parametrize("columns", [{"note": ["x"] * 8, "file_name": None}, {"text": None, "n": [1] * 8}])
def test_a_column_of_paths(columns: dict[str, Any], folder: Path, files: Files) -> None:
    table = {name: list(files) if values is None else values for name, values in columns.items()}
    source = open_source(str(write_parquet(folder / "a.parquet", table)))

    assert contents(source) == files
    assert found(source, "z.png") == {"z.png": files["z.png"]}


@pytest.mark.parametrize("place", ["", "*.parquet", "part-{0..1}.parquet"])
def test_many_parquet_files(place: str, files: Files, tmp_path: Path) -> None:
    for number in range(2):
        write_parquet(tmp_path / f"part-{number}.parquet", {"data": list(files.values())})
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "README.md").touch()
    source = open_source(str(tmp_path / place))
    before = states(source)

    assert list(contents(source)) == [f"part-{number}.parquet#{row}" for number in range(2) for row in range(8)]
    os.utime(tmp_path / "part-1.parquet", ns=(0, 12345))
    assert [a == b for a, b in zip(before, states(source), strict=True)] == [True] * 3 + [False] * 3


def test_a_group_of_rows_may_be_larger_or_smaller_than_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "BATCH_ROWS", 4)
    data = [b"%d" % number for number in range(50)]
    for group in (1, 7, 50):
        path = write_parquet(tmp_path / f"{group}.parquet", {"data": data}, row_group_size=group, use_dictionary=False)
        for images in (1, 5, 64):
            assert list(contents(open_source(str(path)), images).values()) == data
    monkeypatch.setattr(parquet_module, "SHARD_BYTES", 180)
    shards = [shard.images or 0 for shard in open_source(str(path)).shards(64)]
    assert sum(shards) == 50
    assert max(shards) <= 30  # a row takes 6 bytes: its length in 4, and its digits


def test_ranges_of_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "BATCH_ROWS", 4)
    data = [b"%d" % number for number in range(90)]
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"data": data}, row_group_size=25)))
    shards = list(source.shards(7))

    for index in np.random.default_rng(2).integers(0, len(shards), 50):
        read = source.read(shards[index], MAX_BYTES)
        got = [item.image for item in islice(read, None if index % 3 else 2)]  # some readers leave early
        assert got == data[7 * index : 7 * index + 7][: None if index % 3 else 2]


def test_tars_and_tables_that_got_shorter(files: Files, tmp_path: Path) -> None:
    fewer = dict(list(files.items())[:6])
    tar, table = tmp_path / "a.tar", tmp_path / "a.parquet"
    sources = [
        open_source(str(write_tar(tar, files))),
        open_source(str(write_parquet(table, {"data": list(files.values())}))),
    ]
    shards = [next(source.shards(100)) for source in sources]
    write_tar(tar, fewer)
    write_parquet(table, {"data": list(fewer.values())})

    for source, shard in zip(sources, shards, strict=True):
        with pytest.raises(
            SourceError, match=r"a\.\w+ must have the images that it had at first, got fewer: begin again"
        ):
            list(source.read(shard, MAX_BYTES))


def test_only_the_columns_that_are_needed_are_read(files: Files, tmp_path: Path) -> None:
    """The other column is broken, which nobody sees who does not read it."""
    columns = {"data": list(files.values()), "other": [b"other" * 2000] * 8}
    path = write_parquet(tmp_path / "a.parquet", columns, compression="none", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(1)
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\xff" * 100)

    assert list(contents(open_source(str(path), column="data")).values()) == list(files.values())
    with pytest.raises(SourceError, match=r"a\.parquet must be (readable|a whole Parquet file), got"):
        contents(open_source(str(path), column="other"))


def test_a_column_must_be_clear(files: Files, tmp_path: Path) -> None:
    data = list(files.values())
    both = str(write_parquet(tmp_path / "a.parquet", {"left": data, "right": data, "n": [1.5] * 8}))
    none = str(write_parquet(tmp_path / "b.parquet", {"n": [1] * 8}))

    assert open_source(both, column="right").description["column"] == "right"
    with pytest.raises(
        SourceError, match=r"must have one column of images, got several: left, right; choose .*--column"
    ):
        open_source(both)
    with pytest.raises(SourceError, match=r"must have one column of images, got only n; choose one with --column"):
        open_source(none)
    with pytest.raises(SourceError, match=r"a\.parquet must have a column middle, got left, right, n"):
        open_source(both, column="middle")
    with pytest.raises(SourceError, match=r"column n of .* must hold bytes, paths or a struct .*, got double"):
        open_source(both, column="n")
    with pytest.raises(SourceError, match=r"key column n of .* must hold text or whole numbers, got double"):
        open_source(both, column="left", key_column="n")
    with pytest.raises(SourceError, match=r"must be Parquet files to have columns, got the kind folder"):
        open_source(str(tmp_path), kind="folder", column="left")


def test_parquet_files_that_are_none_or_broken_or_empty(files: Files, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"data": list(files.values())}, compression="none")
    source = open_source(str(path))
    whole = path.read_bytes()
    (tmp_path / "b").mkdir()

    path.write_bytes(whole[:-8])
    with pytest.raises(SourceError, match=r"a\.parquet must be a whole Parquet file, got a broken one"):
        list(source.shards(3))
    with pytest.raises(SourceError, match=r"a\.parquet must be a whole Parquet file, got a broken one"):
        open_source(str(path))
    write_parquet(path, {"data": pa.array([], pa.binary())})
    with pytest.raises(SourceError, match=r"a\.parquet must hold at least one row, got none"):
        list(source.shards(3))
    with pytest.raises(SourceError, match=r"b must hold at least one Parquet file, got none"):
        open_source(str(tmp_path / "b"), kind="parquet")


# Kinds


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.png"], "folder"),
        (["a.txt", "b"], "folder"),
        (["README.md", "data/a.parquet", ".git/x.png"], "parquet"),
        (["a.tar", "b.tgz", "index.json"], "tar"),
        (["a.npy"], "array"),
        (["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], "array"),
    ],
)
def test_what_a_folder_holds_tells_its_kind(names: list[str], kind: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".parquet"):
            write_parquet(tmp_path / name, {"data": [b"x"]})
        (tmp_path / name).touch()

    assert open_source(str(tmp_path)).description["kind"] == kind


def test_a_kind_that_cannot_be_told(tmp_path: Path) -> None:
    for name in ("a.png", "all.tar", "b.dat"):
        (tmp_path / name).touch()

    with pytest.raises(
        SourceError, match=r"must hold files of one kind, got some that belong to folder, tar: choose one"
    ):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), kind="folder").description["kind"] == "folder"
    with pytest.raises(
        SourceError, match=r"b\.dat must be a folder of images, got a file whose name .* no kind .*--source"
    ):
        open_source(str(tmp_path / "b.dat"))
    with pytest.raises(SourceError, match=r"source must be folder, glob, paths, parquet, tar, array, got 'ftp'"):
        open_source(str(tmp_path), kind="ftp")
    with pytest.raises(
        SourceError, match=r"\\udcff' must be an address of printable text in UTF-8, got others: rename it"
    ):
        open_source(str(tmp_path) + "/\udcff")


# Places


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    place = place_of(tmp_path / "new" / "a.bin")
    place.write(lambda out: out.write(b"old"))

    def fail(out: Any) -> None:
        out.write(b"half")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        place.write(fail)
    assert place.read() == b"old"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]
    place.delete()
    place.delete()
    assert not place.exists()


def test_a_local_place_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert place_of("a/b.png") == place_of(tmp_path / "a" / "b.png") == LocalPlace(f"{tmp_path}/a/b.png")
    assert place_of("file:///a%20b") == LocalPlace("/a b")
    assert (place_of("a/b.png").name, place_of("a/b.png").parent) == ("b.png", place_of("a"))
    assert place_of("a").child("b.png") == place_of("a/b.png")
    assert place_of("nowhere").info() is None
    assert place_of("").info().is_folder  # type: ignore[union-attr]


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(ImageTooLarge, match=rf"^image must have at most 10 bytes, got {2**40}$"):
        place_of(tmp_path / "large").read(10)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("xyz://a/b", r"xyz://a/b must start like an address that pyarrow or fsspec knows, got .*xyz"),
        ("sftp://host/a", r"sftp:// needs a package that is missing: .*paramiko"),
        ("s3://key:secret@bucket/a", r"s3 URL must name no user or password, got one"),
        (
            "s3://bucket/a?nonsense=1",
            r"s3://bucket/\?nonsense=1 must be an address that pyarrow can open, got .*nonsense",
        ),
    ],
)
def test_addresses_that_cannot_be_opened(url: str, message: str) -> None:
    with pytest.raises(PlaceError, match=message):
        place_of(url)


def test_fsspec_is_asked_for_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)

    with pytest.raises(
        PlaceError, match=r"memory:// needs fsspec, which is missing: pip install 'discriminant\[score\]'"
    ):
        place_of("memory://a")
