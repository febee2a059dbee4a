"""The device of a training and the precision that suits it, on this CPU, on a smaller one, on GPUs that say so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_samples import digits_from, small_recipe, write_digit_folder

from serving.errors import DeviceUnavailable
from training.classifier import Architecture, build_classifier
from training.data import Sources
from training.devices import PrecisionChoice, choose_device, choose_precision, describe_device
from training.fit import fit
from training.run import Run
from training.train import train

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).resolve().parents[1]
SMALLER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
EMULATED = "this CPU emulates bfloat16, having neither AVX-512 BF16 nor AMX"


# Devices


def test_cuda_on_a_machine_without_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(DeviceUnavailable, match=r"^device must be there, got cuda on a machine without a usable GPU"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_device_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == CPU


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^device must be auto, cpu or cuda, got 'gpu'$"):
        choose_device("gpu")


# Precision


def flags_of_cpu() -> set[str]:
    """What the kernel says this CPU can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


@pytest.mark.isa
def test_cpu_trains_in_bfloat16_if_it_has_the_instructions() -> None:
    held_back = any(name in os.environ for name in SMALLER)
    native = not held_back and "avx512_bf16" in flags_of_cpu()

    choice = choose_precision("auto", CPU)

    assert choice.precision == ("bfloat16" if native else "float32")
    assert choice.why in ({"this CPU has AVX-512 BF16", "this CPU has AMX"} if native else {EMULATED})
    assert choice.warning == ""


@pytest.mark.parametrize("name", [*SMALLER, None])
def test_cpu_that_is_held_to_avx2_trains_in_float32(name: str | None) -> None:
    """Either of the libraries that compute is enough to make bfloat16 slow; without a name, both."""
    held = SMALLER if name is None else {name: SMALLER[name]}
    kept = {key: value for key, value in os.environ.items() if key not in SMALLER}
    program = "import torch; from training.devices import choose_precision as c; print(c('auto', torch.device('cpu')))"

    result = subprocess.run(
        [sys.executable, "-c", program], env=kept | held, cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert result.stdout == f"float32: {EMULATED}\n"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), "bfloat16: this GPU has compute capability 9.0"),
        ((8, 0), "bfloat16: this GPU has compute capability 8.0"),
        ((7, 5), "float32: this GPU emulates bfloat16, having compute capability 7.5 and not 8.0 or more"),
    ],
)
def test_gpu_trains_in_bfloat16_from_capability_8(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for GPUs that are not here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    assert str(choose_precision("auto", GPU)) == expected


def test_named_precision_is_taken_with_a_warning_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    fact = "this GPU emulates bfloat16, having compute capability 7.5 and not 8.0 or more"
    warning = f"training in bfloat16 is slow here: {fact}; fit.precision = auto is quick"

    assert choose_precision("bfloat16", GPU) == PrecisionChoice("bfloat16", "the recipe names it", warning)
    assert choose_precision("float32", GPU) == PrecisionChoice("float32", "the recipe names it")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert choose_precision("bfloat16", GPU) == PrecisionChoice("bfloat16", "the recipe names it")


@pytest.mark.isa
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_encoder_is_trained_in_what_is_chosen(asked: str) -> None:
    recipe, train = small_recipe(fit={"epochs": 1, "precision": asked}), digits_from(0, 64)
    classifier = build_classifier(Architecture((1, 8, 8), 10, recipe.encoder, recipe.head))
    seen = []
    classifier.encoder.register_forward_hook(lambda *call: seen.append(call[2].dtype))

    next(fit(classifier, recipe, train, digits_from(0, 0)))

    chosen = choose_precision("auto", CPU).precision if asked == "auto" else asked
    assert seen == [getattr(torch, chosen)]


@pytest.mark.isa
def test_training_says_and_records_its_precision(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = write_digit_folder(tmp_path / "some-digits")
    data = {"name": "folder", "channels": 1, "size": 8}
    choices = {asked: choose_precision(asked, CPU) for asked in ("auto", "bfloat16")}

    for asked, choice in choices.items():
        run = Run.create("small", small_recipe(data=data, fit={"epochs": 1, "precision": asked}), asked, tmp_path)
        train(run, Sources(folder=images), CPU)
        said = capfd.readouterr()

        first, *_ = (line for line in said.out.splitlines() if line.startswith("training "))
        assert first.endswith(f" on {describe_device(CPU)} in {choice}")
        assert run.description()["precision"] == {"chosen": choice.precision, "why": choice.why}
        assert said.err.splitlines() == ([choice.warning] if choice.warning else [])
