"""The device of a training, and the precision that suits it.

    device = choose_device("auto")
    print(choose_precision("auto", device))     # bfloat16: this CPU has AVX-512 BF16

bfloat16 is quick only where a device has instructions for it; elsewhere it is emulated, many times slower than float32.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from serving.errors import DeviceUnavailable

TrainingPrecision = Literal["float32", "bfloat16"]
BFLOAT16_CAPABILITY = (8, 0)  # the least compute capability of a GPU that computes in bfloat16


@dataclass(frozen=True)
class PrecisionChoice:
    """What the encoder is trained in, and why.

    Attributes:
        precision: of the encoder's products; weights and head are always in float32.
        why: in words.
        warning: what to tell who named a precision that the device emulates; else empty.
    """

    precision: TrainingPrecision
    why: str
    warning: str = ""

    def __str__(self) -> str:
        return f"{self.precision}: {self.why}"


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda`.

    Raises:
        DeviceUnavailable: if CUDA was asked for and is not there.
        ValueError: if the name is another.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceUnavailable("device must be there, got cuda on a machine without a usable GPU: try --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def describe_device(device: torch.device) -> str:
    """A device as a person would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def choose_precision(asked: Literal["auto"] | TrainingPrecision, device: torch.device) -> PrecisionChoice:
    """What to train in on a device; `auto` is bfloat16 where the device has instructions for it, else float32.

    A precision that is named is taken, if with a warning.
    """
    native, fact = _bfloat16_on(device)
    if asked == "auto":
        return PrecisionChoice("bfloat16" if native else "float32", fact)
    warning = f"training in bfloat16 is slow here: {fact}; fit.precision = auto is quick"
    return PrecisionChoice(asked, "the recipe names it", "" if native or asked == "float32" else warning)


def _bfloat16_on(device: torch.device) -> tuple[bool, str]:
    """Whether a device has instructions for bfloat16, and which, or what it lacks."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        found = f"compute capability {capability[0]}.{capability[1]}"
        if capability >= BFLOAT16_CAPABILITY:
            return True, f"this GPU has {found}"
        return False, f"this GPU emulates bfloat16, having {found} and not 8.0 or more"
    if _cpu_may_use_avx512():
        for name, there in (
            ("AMX", torch.cpu._is_amx_tile_supported),
            ("AVX-512 BF16", torch.cpu._is_avx512_bf16_supported),
        ):
            if there():
                return True, f"this CPU has {name}"
    return False, "this CPU emulates bfloat16, having neither AVX-512 BF16 nor AMX"


def _cpu_may_use_avx512() -> bool:
    """Whether both libraries that compute, torch's own kernels and oneDNN, go beyond AVX2.

    The CPU's own word is not enough: ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA hold them to less.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
