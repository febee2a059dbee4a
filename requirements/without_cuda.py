"""A lock for machines without a GPU: nothing of CUDA nor torch, and ONNX Runtime's CPU build; the rest as it was.

    python3 requirements/without_cuda.py requirements/dev.txt > cpu.txt
    python3 requirements/without_cuda.py --torch requirements/dev.txt > torch.txt
    uv pip sync --require-hashes cpu.txt && uv pip install --no-deps --torch-backend cpu -r torch.txt

The second prints torch and torchvision in the lock's versions, without hashes: their CPU builds are in another index.
They come by a command of their own, for uv would look there for TorchServe too. ONNX Runtime is that of serve-cpu.txt,
beside this file.
"""

import re
import sys
from pathlib import Path

OF_CUDA = re.compile(r"cuda-|nvidia-(?!ml-py)|triton==")
OF_TORCH = re.compile(r"(?:torch|torchvision)==\S+")
ONNX_RUNTIME = "onnxruntime==", "onnxruntime-gpu=="


def without_cuda(lock: str, cpu_lock: str) -> list[str]:
    """The entries of a lock that need neither CUDA nor torch; `cpu_lock` has ONNX Runtime's CPU build."""
    (onnx_runtime,) = (entry for entry in _entries(cpu_lock) if entry.startswith(ONNX_RUNTIME))
    kept = [entry for entry in _entries(lock) if not (OF_CUDA.match(entry) or OF_TORCH.match(entry))]
    return [onnx_runtime if entry.startswith(ONNX_RUNTIME) else entry for entry in kept]


def torch(lock: str) -> list[str]:
    """What of torch the lock has, by name and version."""
    return [found[0] for entry in _entries(lock) if (found := OF_TORCH.match(entry))]


def _entries(lock: str) -> list[str]:
    """A package with its version, marker and hashes each; further lines of an entry are indented."""
    return re.split(r"\n(?=\S)", lock.strip())


if __name__ == "__main__":
    *options, path = sys.argv[1:]
    text = Path(path).read_text()
    cpu = Path(__file__).with_name("serve-cpu.txt")
    print("\n".join(torch(text) if options == ["--torch"] else without_cuda(text, cpu.read_text())))
