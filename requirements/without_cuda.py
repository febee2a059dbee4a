"""A lock for machines without a GPU: nothing of CUDA, ONNX Runtime and torch in their CPU builds; the rest as it was.

    python3 requirements/without_cuda.py requirements/dev.txt > cpu.txt
    uv pip sync --torch-backend cpu cpu.txt

torch and torchvision lose their hashes: their CPU builds, of the same versions, are in an index of their own, where
--torch-backend looks. ONNX Runtime is that of serve-cpu.txt, beside this file. uv checks the hashes that
there are.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

OF_CUDA = re.compile(r"cuda-|nvidia-(?!ml-py)|triton==")
OF_TORCH = re.compile(r"(?:torch|torchvision)==[^ ]+")
ONNX_RUNTIME = "onnxruntime"


def without_cuda(lock: str, cpu_lock: str) -> Iterator[str]:
    """The entries of a lock, changed; `cpu_lock` has ONNX Runtime's CPU build."""
    (onnx_runtime,) = (entry for entry in _entries(cpu_lock) if entry.startswith(f"{ONNX_RUNTIME}=="))
    for entry in _entries(lock):
        if entry.startswith(f"{ONNX_RUNTIME}-gpu=="):
            yield onnx_runtime
        elif found := OF_TORCH.match(entry):
            yield found[0]
        elif not OF_CUDA.match(entry):
            yield entry


def _entries(lock: str) -> list[str]:
    """A package with its version, marker and hashes each; further lines of an entry are indented."""
    return re.split(r"\n(?=\S)", lock.strip())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print("\n".join(without_cuda(path.read_text(), Path(__file__).with_name("serve-cpu.txt").read_text())))
