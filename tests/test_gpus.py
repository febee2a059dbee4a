"""How many GPUs there are. There is none here: a stand-in for NVML says what it would say of some."""

import sys
from types import ModuleType

import pytest

from serving.errors import DeviceUnavailable
from serving.torchserve.gpus import count_gpus

UUIDS = ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-89ab1234-0000-4106-c12f-20bd9faed9f6", "GPU-c0ffee00-1")


class StandIn(ModuleType):
    """What is asked of pynvml, for a machine with GPUs of these UUIDs."""

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, uuids: tuple[str, ...]) -> None:
        super().__init__("pynvml")
        self.uuids = uuids

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.uuids:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return self.uuids[handle]


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(UUIDS))


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3),
        ("", 0),
        ("0", 1),
        ("2, 0", 2),
        ("0,1,2", 3),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,3,1", 1),
        ("7", 0),
        ("0,,1", 1),
        ("none", 0),
        ("GPU-8932", 1),
        ("GPU-8932,GPU-89ab1234-0000-4106-c12f-20bd9faed9f6", 2),
        ("GPU-89", 0),  # it begins two
        ("GPU-dead,0", 0),
        ("0,GPU-c0ffee", 2),
        ("0,0", 0),
        ("1,GPU-89ab", 0),
        ("MIG-3d1c,MIG-77aa", 1),
    ],
)
def test_cudas_rules_for_what_is_visible(visible: str | None, count: int) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    assert count_gpus("auto", environment) == count
    assert count_gpus("cpu", environment) == 0
    if count:
        assert count_gpus("gpu", environment) == count


@pytest.mark.usefixtures("three_gpus")
def test_gpus_that_are_hidden_are_told() -> None:
    reason = r"\(CUDA_VISIBLE_DEVICES is '' and the driver counts 3\): choose cpu or auto$"
    with pytest.raises(DeviceUnavailable, match=rf"^device gpu must find an NVIDIA GPU, got none {reason}"):
        count_gpus("gpu", {"CUDA_VISIBLE_DEVICES": ""})


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(()))

    assert count_gpus("auto", {"CUDA_VISIBLE_DEVICES": "0"}) == 0
    with pytest.raises(DeviceUnavailable, match=r"got none \(Driver Not Loaded\): choose cpu or auto$"):
        count_gpus("gpu", {})
