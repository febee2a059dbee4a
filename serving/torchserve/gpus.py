"""How many GPUs a server may use: those that NVML counts, less what CUDA_VISIBLE_DEVICES, which it ignores, hides."""

from collections.abc import Mapping, Sequence
from typing import Literal

from serving.errors import DeviceUnavailable

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
DeviceChoice = Literal["auto", "cpu", "gpu"]


def count_gpus(device: DeviceChoice, environment: Mapping[str, str]) -> int:
    """How many GPUs TorchServe may use.

    Args:
        device: `auto` takes the GPUs that there are, `cpu` none.
        environment: of the process.

    Raises:
        DeviceUnavailable: if a GPU is asked for and there is none.
    """
    if device == "cpu":
        return 0
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        found, reason = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles], "the driver counts 0"
    except pynvml.NVMLError as exc:
        found, reason = [], str(exc)
    chosen = environment.get(VISIBLE_VARIABLE)
    count = len(found) if chosen is None else _visible(chosen, found)
    if found and count == 0:
        reason = f"{VISIBLE_VARIABLE} is {chosen!r} and the driver counts {len(found)}"
    if count == 0 and device == "gpu":
        raise DeviceUnavailable(f"device gpu must find an NVIDIA GPU, got none ({reason}): choose cpu or auto")
    return count


def _visible(chosen: str, uuids: Sequence[str]) -> int:
    """How many devices CUDA sees, by its own rules for CUDA_VISIBLE_DEVICES.

    An entry is an index or the beginning of one device's UUID. The list ends before the first entry that is neither; a
    list with a device twice shows none. Of parts of a GPU, whose UUIDs begin with MIG-, CUDA uses one.
    """
    seen: list[int] = []
    for entry in map(str.strip, chosen.split(",")):
        if entry.startswith("MIG-"):
            return len(seen) or 1
        index = _index(entry, uuids)
        if index is None:
            break
        if index in seen:
            return 0
        seen.append(index)
    return len(seen)


def _index(entry: str, uuids: Sequence[str]) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) < len(uuids) else None
    named = [index for index, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
    return named[0] if len(named) == 1 else None
