"""Images in tar files, as WebDataset has them: members that end in .jpg, .jpeg, .png or .webp; others are skipped.

A tar of this machine that is not compressed is scanned, header by header, and its shards begin at offsets, so several
processes share it. Another one is a shard as a whole, read as a stream, and how many images it has shows at its end.
"""

# ruff: noqa: D102 - the base class says what its methods do

from collections.abc import Callable, Collection, Iterator
from itertools import islice

from serving.batch.listing import Entry
from serving.batch.places import LocalPlace, Place, check_size
from serving.batch.source import Item, Shard, UnreadableFile
from serving.batch.sources.inputs import file_of, input_place, inputs, is_compressed, opened
from serving.batch.sources.packing import bytes_of, grouped, key_of, state_of
from serving.batch.sources.placed import PlacedSource
from serving.batch.sources.reading import as_many, source_errors
from serving.batch.sources.tar_members import Member, members
from serving.errors import ImageTooLarge

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGES = (b".jpg", b".jpeg", b".png", b".webp")


class Tar(PlacedSource):
    """Members of a tar, of those in a folder, or of those of a pattern.

    An image's key is `TAR/MEMBER`, where the tar is named from the folder of all of them.
    """

    kind = "tar"
    must = "hold at least one image"

    def _shards(self, images: int) -> Iterator[Shard]:
        root, entries = inputs(self.place, SUFFIXES)
        for entry in entries:
            file = file_of(entry)
            place = input_place(root, file)
            state = state_of([entry])
            if _is_stream(place):
                yield Shard({"tar": file}, state, None)
                continue
            for group in grouped(_scanned(place, entry), images):
                yield Shard({"tar": file, "offset": group[0].offset}, state, len(group))

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        root, _ = inputs(self.place, SUFFIXES)
        offset = shard.where.get("offset", 0)
        items = _items(root, shard.where["tar"], _is_image, max_bytes, offset)
        return as_many(islice(items, shard.images), shard.images, shard.where["tar"])

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        root, entries = inputs(self.place, SUFFIXES)
        for entry in entries:
            prefix = key_of(entry.path) + "/"
            names = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}

            def wanted(member: Member, names: set[str] = names) -> bool:
                return _is_image(member) and _shown(member) in names

            yield from islice(_items(root, file_of(entry), wanted, max_bytes), len(names))


def _is_image(member: Member) -> bool:
    return member.name.lower().endswith(IMAGES)


def _shown(member: Member) -> str:
    return key_of(member.name.removeprefix(b"./"))


def _is_stream(place: Place) -> bool:
    return not isinstance(place, LocalPlace) or is_compressed(place)


def _scanned(place: Place, entry: Entry) -> Iterator[Member]:
    with place.open() as file:
        for member, _ in members(file, str(place), lambda _: False, tar_bytes=entry.size):
            if _is_image(member):
                yield member


def _items(root: Place, tar: str, wanted: Callable[[Member], bool], max_bytes: int, offset: int = 0) -> Iterator[Item]:
    place = input_place(root, tar)
    prefix = key_of(bytes_of(tar)) + "/"

    def is_read(member: Member) -> bool:
        return member.is_file and member.size <= max_bytes and wanted(member)

    with source_errors(str(place)), opened(place) as file:
        for member, data in members(file, str(place), is_read, offset=offset):
            if wanted(member):
                yield _item(prefix + _shown(member), member, data, max_bytes)


def _item(key: str, member: Member, data: bytes, max_bytes: int) -> Item:
    if not member.is_file:
        return Item(key, UnreadableFile("image must be a file of the tar, got a link or the like"))
    try:
        check_size(member.size, max_bytes)
    except ImageTooLarge as error:
        return Item(key, error)
    return Item(key, data)
