import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZE, gmm_answers, golden_images

from serving.bundle import Bundle
from serving.errors import BundleError, DeviceUnavailable
from serving.predictor import Predictor
from serving.runtimes import (
    CPU_PROVIDER,
    _at_fixed_sizes,
    _bound,
    _load_torchscript,
    _plain,
    onnxruntime,
    open_runtime,
)


def has_gpu() -> bool:
    return torch.cuda.is_available()


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_outputs_carry_their_names_and_any_batch_size(kind: str, bundle_dir: Path, softmax_dir: Path) -> None:
    for folder in (bundle_dir, softmax_dir):
        bundle = Bundle.load(folder)
        run = open_runtime(bundle, kind, threads=1)
        for count in (1, 2, 5):
            outputs = run(golden_images()[:count])
            assert tuple(outputs) == bundle.manifest.outputs
            assert all(len(values) == count for values in outputs.values())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_that_is_shared_out_among_threads_comes_back_in_order(threads: int, bundle_dir: Path) -> None:
    images = np.random.default_rng(5).integers(0, 256, (7, 1, SIZE, SIZE), dtype=np.uint8)
    run = open_runtime(Bundle.load(bundle_dir), "onnx", "cpu", threads)

    for count in (1, 2, 3, 7):
        outputs, expected = run(images[:count]), gmm_answers(images[:count])
        for name, values in outputs.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_onnx_on_the_cpu_imports_no_torch(bundle_dir: Path) -> None:
    script = f"""
import sys
from serving.predictor import Predictor
Predictor.open({str(bundle_dir)!r}).warm_up()
print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_nothing_is_reported_to_the_makers_of_the_runtime(bundle_dir: Path, tmp_path: Path) -> None:
    script = f"from serving.predictor import Predictor; Predictor.open({str(bundle_dir)!r}).warm_up()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**environment, "HOME": str(tmp_path)}, check=True)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device(device: str, bundle_dir: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=rf"^device must be cpu, cuda or cuda:N, got {device!r}$"):
        open_runtime(Bundle.load(bundle_dir), "onnx", device)


@pytest.mark.filterwarnings("ignore")  # torch and ONNX Runtime look for a driver, each in its own words
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_missing_gpu_is_an_error_not_a_fallback(kind: str, bundle_dir: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"^device cuda:1 must be usable, got none: .* or choose the CPU$"):
        open_runtime(Bundle.load(bundle_dir), kind, "cuda:1")


def batches() -> Iterator[np.ndarray]:
    """Batches of every kind: as large as a fixed size, between two, after a larger one, larger than all."""
    generator = np.random.default_rng(4)
    for count in (8, 3, 1, 64, 33, 70, 5):
        yield generator.integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8)


@pytest.mark.skipif(not has_gpu(), reason="no GPU")
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_gpu_computes_the_same(kind: str, bundle_dir: Path) -> None:
    bundle = Bundle.load(bundle_dir)
    on_gpu, on_cpu = open_runtime(bundle, kind, "cuda:0"), open_runtime(bundle, kind)

    for images in batches():
        outputs = on_gpu(images)
        for name, expected in on_cpu(images).items():
            assert outputs[name] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.skipif(not has_gpu(), reason="no GPU")
def test_a_gpu_computes_the_same_in_16_bits() -> None:
    Predictor.open(
        ROOT / "model_store" / "fashion-mnist-mda-best" / "1", "onnx", "cuda:0", precision="float16"
    ).warm_up()


def test_fixed_sizes_answer_as_any_size(bundle_dir: Path) -> None:
    """What runs CUDA graphs, on the CPU: a stand-in for a graph calls the module and writes into the same outputs."""

    def capture(module: Any, images: torch.Tensor) -> tuple[Callable[[], None], list[torch.Tensor]]:
        outputs = [output.clone() for output in module(images)]

        def replay() -> None:
            for output, value in zip(outputs, module(images), strict=True):
                output.copy_(value)

        return replay, outputs

    module = _load_torchscript(Bundle.load(bundle_dir).torchscript, torch.device("cpu"))
    fixed = _at_fixed_sizes(module, (1, SIZE, SIZE), torch.device("cpu"), capture)

    with torch.inference_mode():
        for images in map(torch.from_numpy, batches()):
            for output, expected in zip(fixed(images), module(images), strict=True):
                torch.testing.assert_close(output, expected)


def test_bound_outputs_are_the_plain_ones(bundle_dir: Path) -> None:
    """What a GPU runs, on the CPU: ONNX Runtime binds either."""
    bundle = Bundle.load(bundle_dir)
    session = onnxruntime().InferenceSession(bundle.onnx(), providers=[CPU_PROVIDER])
    bound, plain = _bound(session, bundle.manifest.outputs, None), _plain(session, bundle.manifest.outputs)

    for images in (golden_images(), golden_images()[::-2]):
        outputs, expected = bound(images), plain(images)
        assert list(outputs) == list(expected)
        assert all(np.array_equal(outputs[name], expected[name]) for name in outputs)


def test_without_torch_torchscript_is_refused_and_onnx_runs(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    bundle = Bundle.load(bundle_dir)

    open_runtime(bundle, "onnx")
    with pytest.raises(BundleError, match="torch must be installed for the runtime torchscript, got none: choose onnx"):
        open_runtime(bundle, "torchscript")


@pytest.mark.parametrize(("kind", "file"), [("onnx", "model.onnx"), ("torchscript", "model.pt")])
def test_a_graph_that_cannot_be_read(kind: str, file: str, bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"no graph")

    with pytest.raises(BundleError, match=rf"{file} must be a graph that .* reads, got "):
        open_runtime(Bundle(tmp_path, Bundle.load(bundle_dir).manifest), kind)
