"""Runtimes: TorchScript or ONNX Runtime behind one call, uint8 (N, channels, height, width) → named arrays.

The libraries are imported by the runtime that uses them. A device that was asked for is used or refused; nothing falls
back to the CPU by itself, and GPUs compute in full float32, as the golden answers ask.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle, Precision
from serving.errors import BundleError, DeviceUnavailable

RuntimeName = Literal["onnx", "torchscript"]
Outputs = dict[str, NDArray[Any]]
Runtime = Callable[[NDArray[np.uint8]], Outputs]
Capture = Callable[[Any, Any], tuple[Callable[[], None], Sequence[Any]]]

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
FIXED_SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches that are CUDA graphs
CALLS_BEFORE_CAPTURE = 3  # TorchScript profiles the first, optimises in the second


def open_runtime(
    bundle: Bundle,
    kind: RuntimeName,
    device: str = "cpu",
    threads: int | None = None,
    precision: Precision = "float32",
) -> Runtime:
    """Load a bundle's graph.

    Args:
        bundle: a verified bundle.
        kind: which of its two graphs to run, and by which library.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of one inference on the CPU; None leaves it to the library. TorchScript sets it for the process.
        precision: `float16` and `int8` run the variants of these names: by ONNX Runtime, the latter on the CPU.

    Returns:
        A function of a batch that returns the arrays of `Manifest.outputs`, float32, by their names.

    Raises:
        DeviceUnavailable: if the device is not there or the library cannot use it.
        BundleError: if the library is missing or cannot read the graph, or there is none in this precision.
    """
    gpu = _gpu_index(device)
    check_runtime(kind, precision)
    if precision == "int8" and gpu is not None:
        raise BundleError(f"precision int8 must run on the CPU, got {device}")
    if kind == "onnx":
        return open_onnx(bundle.onnx(precision), bundle.manifest.outputs, gpu, threads)
    return _open_torchscript(bundle, gpu, threads)


def check_runtime(kind: RuntimeName, precision: Precision) -> None:
    """Refuse a runtime that has no graph in this precision.

    Raises:
        BundleError: for a variant by TorchScript.
    """
    if precision != "float32" and kind != "onnx":
        raise BundleError(f"precision {precision} must run by onnx, got {kind}")


def _gpu_index(device: str) -> int | None:
    if device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise DeviceUnavailable(f"device must be cpu, cuda or cuda:N, got {device!r}")
    return int(match[1] or 0)


def onnxruntime() -> ModuleType:
    """ONNX Runtime, imported so that it does not report to its maker, which its builds do by default."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    module: ModuleType = onnxruntime
    return module


def open_onnx(graph: Path, outputs: Sequence[str], gpu: int | None = None, threads: int | None = None) -> Runtime:
    """Load an ONNX graph by its file; `outputs` are the names of what it returns, the rest as in `open_runtime`."""
    names, session = list(outputs), _session(graph, gpu, threads)
    if gpu is not None:
        return _bound(session, names, gpu)
    together = _plain(session, names)
    if threads is None or threads == 1:
        return together
    return _shared_out(together, _plain(_session(graph, None, 1), names), threads)


def _session(graph: Path, gpu: int | None, threads: int | None) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters of its warnings is checked below
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [CPU_PROVIDER]
    if gpu is not None:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        providers.insert(0, (CUDA_PROVIDER, {"device_id": gpu, "use_tf32": 0}))
    try:
        session = ort.InferenceSession(graph, options, providers=providers)
    except Exception as exc:  # ONNX Runtime has no public base class of its errors
        if gpu is not None:
            raise _no_cuda(gpu, f"ONNX Runtime says: {exc}") from exc
        raise BundleError(f"{graph} must be a graph that ONNX Runtime {ort.__version__} reads, got {exc}") from exc
    if gpu is not None and CUDA_PROVIDER not in session.get_providers():
        raise _no_cuda(gpu, f"ONNX Runtime offers only {', '.join(session.get_providers())}")
    return session


def _shared_out(together: Runtime, alone: Runtime, threads: int) -> Runtime:
    """A batch with an image for every thread is shared out: each computes its own, and waits for the others once.

    The threads of one inference wait for each other after every layer.

    Args:
        together: by all threads, for fewer images.
        alone: by the thread that calls it.
        threads: how many.
    """
    others = ThreadPoolExecutor(threads - 1)

    def run(images: NDArray[np.uint8]) -> Outputs:
        if len(images) < threads:
            return together(images)
        mine, *theirs = np.array_split(images, threads)
        begun = [others.submit(alone, share) for share in theirs]
        parts = [alone(mine), *(one.result() for one in begun)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def _plain(session: Any, names: Sequence[str]) -> Runtime:
    def run(images: NDArray[np.uint8]) -> Outputs:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run


def _bound(session: Any, names: Sequence[str], gpu: int | None) -> Runtime:
    """Outputs stay on the device until all of them are there, so that it is waited for once; None is the CPU."""
    device, index = ("cpu", 0) if gpu is None else ("cuda", gpu)

    def run(images: NDArray[np.uint8]) -> Outputs:
        binding = session.io_binding()
        binding.bind_cpu_input("images", np.ascontiguousarray(images))
        for name in names:
            binding.bind_output(name, device, index)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return run


def _torch() -> ModuleType:
    try:
        import torch
    except ModuleNotFoundError as exc:
        raise BundleError("torch must be installed for the runtime torchscript, got none: choose onnx") from exc
    module: ModuleType = torch
    return module


def _open_torchscript(bundle: Bundle, gpu: int | None, threads: int | None) -> Runtime:
    torch = _torch()
    if gpu is not None and (not torch.cuda.is_available() or gpu >= torch.cuda.device_count()):
        raise _no_cuda(gpu, f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
    module = _load_torchscript(bundle.torchscript, device)
    names = bundle.manifest.outputs
    if gpu is not None:
        spec = bundle.manifest.input
        try:
            module = _at_fixed_sizes(module, (spec.channels, spec.height, spec.width), device, _capture)
        except RuntimeError as exc:
            reason = str(exc).strip().splitlines()[0]
            raise BundleError(f"{bundle.torchscript} must run as CUDA graphs, got {reason}: choose onnx") from exc

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(images))
            return {name: value.cpu().numpy() for name, value in zip(names, outputs, strict=True)}

    return run


def _at_fixed_sizes(module: Any, image_shape: tuple[int, int, int], device: Any, capture: Capture) -> Any:
    """A module that runs at a few batch sizes alone, each captured once; a batch fills up the next of them.

    The rows that are left over hold what an earlier batch has left there, and are not returned. What is larger than the
    largest size runs as it is.
    """
    import torch

    with torch.inference_mode():
        inputs = {size: torch.zeros((size, *image_shape), dtype=torch.uint8, device=device) for size in FIXED_SIZES}
        captured = {size: capture(module, images) for size, images in inputs.items()}

    def call(images: Any) -> Any:
        count = len(images)
        size = next((size for size in FIXED_SIZES if size >= count), None)
        pinned = images.pin_memory() if device.type == "cuda" else images
        if size is None:
            return module(pinned.to(device, non_blocking=True))
        inputs[size][:count].copy_(pinned, non_blocking=True)
        replay, outputs = captured[size]
        replay()
        return [output[:count] for output in outputs]

    return call


def _capture(module: Any, images: Any) -> tuple[Callable[[], None], Sequence[Any]]:
    """All that a module launches for `images`, as one CUDA graph, and the outputs that each replay writes."""
    import torch

    with torch.cuda.device(images.device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(CALLS_BEFORE_CAPTURE):
                module(images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = module(images)
    return graph.replay, outputs


def _load_torchscript(path: Path, device: Any) -> Any:
    import torch

    with _without_deprecation():
        try:
            return torch.jit.freeze(torch.jit.load(str(path), map_location=device).eval())
        except RuntimeError as exc:
            reason = str(exc).strip().splitlines()[0]
            raise BundleError(f"{path} must be a graph that torch {torch.__version__} reads, got {reason}") from exc


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Let `torch.jit` load: torch 2.13 deprecates it, but it is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
        yield


def _no_cuda(gpu: int, reason: str) -> DeviceUnavailable:
    return DeviceUnavailable(
        f"device cuda:{gpu} must be usable, got none: {reason}. Check the driver with nvidia-smi and that the CUDA "
        "build is installed, or choose the CPU"
    )
