"""A job: what is scored by what into what, the same whenever the same command is given.

Its folder `_job` holds

    job.json        what it is: source, bundle, options, and the digest of its shards
    shards.jsonl    its shards, one a line, in order
    done/N.json     what there is to tell of part N, and its digest, written once the part is there

and lies in the folder of parts, or, if one file is asked for, with the parts beside that file until it is whole. A job
goes on if what it is has not changed; a part is scored again unless it is there with the digest that it was written
with.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from serving.batch.options import ScoreOptions
from serving.batch.source import Shard, Source
from serving.batch.store import OutputError, Store
from serving.bundle import Bundle

JOB_FOLDER = "_job"
JOB, SHARDS, DONE = "job.json", "shards.jsonl", "done"


@dataclass(frozen=True)
class Job:
    """What is scored by what into what. It travels to other processes and machines.

    Attributes:
        source: the images.
        bundle: its folder.
        options: what else decides the table.
        store: where the parts lie.
    """

    source: Source
    bundle: str
    options: ScoreOptions
    store: Store

    @property
    def records(self) -> Store:
        """The folder of what is known about the job."""
        return self.store.inside(JOB_FOLDER)

    def part_name(self, number: int) -> str:
        """The file of a part."""
        return f"part-{number:07d}.{self.options.format}"  # in this order by name too, however many

    def has_parts(self) -> bool:
        """Whether any part is done; until then another job may take its place."""
        return bool(self.records.inside(DONE).names())

    def identity(self, bundle: Bundle) -> dict[str, Any]:
        """What the job is, but for its images, as plain JSON values."""
        manifest = bundle.manifest
        names = {"component_names": manifest.component_names} if manifest.component_names else {}  # not in the digest
        return {
            "source": self.source.description,
            "bundle": {"name": manifest.name, "version": manifest.version, "digest": bundle.digest, **names},
            "options": json.loads(json.dumps(asdict(self.options))),
        }


@dataclass(frozen=True)
class Plan:
    """The shards of a job.

    Attributes:
        shards: how many.
        images: how many images they have; None if that shows only when they are read.
        digest: of all of them, in hexadecimal.
    """

    shards: int
    images: int | None
    digest: str


def begin(job: Job, bundle: Bundle) -> Plan:
    """Write what a job is and its shards, or find that it is the job that was begun here.

    Raises:
        OutputError: if another job was begun here, or what lies here is no job's.
        SourceError: if the source is not there, or has no images.
    """
    begun = job.records.read(JOB)
    if begun is None:
        require_empty(job.store)
    if begun is None or not job.has_parts():
        plan = _written(job)
        whole = job.identity(bundle) | {"inputs": asdict(plan)}
        job.records.write(JOB, json.dumps(whole, indent=2).encode() + b"\n")
        return plan
    there = json.loads(begun)
    require_same({**there, "inputs": None}, job.identity(bundle) | {"inputs": None}, str(job.store))
    plan = plan_of(job)
    require_same(there, job.identity(bundle) | {"inputs": asdict(plan)}, str(job.store))
    return plan


def plan_of(job: Job) -> Plan:
    """A job's shards as its source gives them now."""
    return _planned(_lines(job), None)


def shards_of(job: Job) -> Iterator[tuple[int, Shard]]:
    """The shards with their numbers, as they were written when the job was begun."""
    with job.records.reading(SHARDS) as stream:
        for number, line in enumerate(stream):
            yield number, Shard(**json.loads(line))


def _lines(job: Job) -> Iterator[tuple[Shard, bytes]]:
    for shard in job.source.shards(job.options.shard_images):
        yield shard, json.dumps(asdict(shard)).encode() + b"\n"


def _written(job: Job) -> Plan:
    """Write down a job's shards."""
    plans: list[Plan] = []
    job.records.write(SHARDS, lambda out: plans.append(_planned(_lines(job), out)))
    return plans[0]


def _planned(lines: Iterator[tuple[Shard, bytes]], stream: BinaryIO | None) -> Plan:
    """Count and digest shards, and write them down if there is somewhere to."""
    digest, shards, images, unknown = hashlib.sha256(), 0, 0, False
    for shard, line in lines:
        digest.update(line)
        if stream is not None:
            stream.write(line)
        shards += 1
        images += shard.images or 0
        unknown |= shard.images is None
    return Plan(shards, None if unknown else images, digest.hexdigest())


def require_empty(store: Store) -> None:
    """Refuse a folder that holds something, if that is not the beginning of a job that never came to be.

    Raises:
        OutputError: if it does.
    """
    if foreign := store.foreign(JOB_FOLDER):
        raise OutputError(f"out must be a new or empty folder or a job's, got {store}, which holds {foreign}")


def require_same(there: dict[str, Any], here: dict[str, Any], place: str) -> None:
    """Refuse to go on with a job that is another one, naming what differs.

    Raises:
        OutputError: if it is.
    """
    theirs, ours = _flat(there), _flat(here)
    differing = [key for key in sorted(theirs | ours) if theirs.get(key) != ours.get(key)]
    if differing:
        both = "; ".join(f"{key} {_shown(theirs.get(key))}, got {_shown(ours.get(key))}" for key in differing)
        raise OutputError(
            f"the job in {place} must be gone on with as it was begun: {both}. Choose another --out, or begin anew in "
            "its place with --again"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _shown(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else json.dumps(value)
