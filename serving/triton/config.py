"""Triton's configuration of a model, `config.pbtxt`: pure text, no I/O.

    text = configuration({1: (manifest, served), 2: (newer, served)})

All versions of a model share it. What clients see is of all of them: an output that one of them has, a size that is
the same in all, else -1. How it is run is as the newest one wants it.

There is no queue policy, so a flood waits instead of being refused: with any, be it `max_queue_size` alone, Triton 2.51
prepares no batch while an instance is busy, and who asks just then waits half a second for it to look again.
"""

import json
from collections.abc import Mapping

from serving.bundle import Manifest
from serving.tensors import tensors_of
from serving.triton.message import TEXTS
from serving.triton.served import Served

TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "BOOL": "TYPE_BOOL"}
ONE = "dims: [ 1 ] reshape { shape: [ ] }"  # an element an image, as Triton wants it written
ANY = -1

Versions = Mapping[int, tuple[Manifest, Served]]


def configuration(versions: Versions) -> str:
    """The text of a model's `config.pbtxt`.

    Triton's largest batch is `max_instances`, as a request may hold that many images. What has gathered while an
    instance was busy is taken at once, up to `batch_size` images of several requests.

    Args:
        versions: the manifest and how it is served, by version.
    """
    manifest, served = versions[max(versions)]
    most = max(one.settings.limits.max_instances for _, one in versions.values())
    outputs = [f"  {{ name: {json.dumps(name)} data_type: {how} }}" for name, how in _outputs(versions).items()]
    return "\n".join(
        (
            f"name: {json.dumps(manifest.name)}",
            'backend: "python"',
            f"max_batch_size: {most}",
            "version_policy { all { } }",
            f'input [ {{ name: "images" data_type: TYPE_STRING {ONE} }} ]',
            "output [\n" + ",\n".join(outputs) + "\n]",
            f"instance_group [ {{ kind: KIND_{served.device.upper()} count: {served.instances} }} ]",
            f"dynamic_batching {{ preferred_batch_size: [ {min(served.settings.batch_size, most)} ] }}",
            "",
        )
    )


def _outputs(versions: Versions) -> dict[str, str]:
    """Type and sizes of each output, by its name."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for manifest, _ in versions.values() for name in tensors_of(manifest)):
        having = [(tensors_of(one)[name], one.head) for one, _ in versions.values() if name in tensors_of(one)]
        shapes = [tensor.sizes(head) for tensor, head in having]
        found[name] = f"{TYPES[having[0][0].datatype]} {_dims(shapes)}"
    return found | dict.fromkeys(TEXTS, f"TYPE_STRING {ONE}")


def _dims(shapes: list[tuple[int, ...]]) -> str:
    sizes = [at[0] if len(set(at)) == 1 else ANY for at in zip(*shapes, strict=True)]
    return f"dims: [ {', '.join(map(str, sizes))} ]" if sizes else ONE
