"""Frozen backbones: networks that others have trained on ImageNet, on whose features a head is fitted.

    network = load_backbone("resnet18", Path("resnet18-f37072fd.pth"))  # normalised (N, 3, 224, 224) → (N, 512)

resnet18   torchvision's ResNet-18 without its fc: 512 globally pooled features
vit-s16    timm's vit_small_patch16_224.augreg_in21k_ft_in1k without its head: the 384 numbers of the [CLS] token

The weights come from a local file or, if none is named, by the library's own download. Images are normalised as the
weights were trained, which is what the library records beside them: ImageNet's mean and standard deviation for
resnet18, 0.5 and 0.5 for vit-s16 (not ImageNet's, which is often put before this ViT too).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from serving.bundle import InputSpec, digest

BackboneKind = Literal["resnet18", "vit-s16"]

SIDE = 224  # of the images, in pixels
VIT = "vit_small_patch16_224.augreg_in21k_ft_in1k"
DOWNLOAD = "download"  # what stands for a digest where the library fetched the weights
NAMED = 5  # keys that an error names

State = Mapping[str, Tensor]


class WeightsError(ValueError):
    """Weights that are not there, or not a backbone's."""


@dataclass(frozen=True)
class Backbone:
    """A network of a library.

    Attributes:
        dim: the number of its features.
        build: the network without its classifier, its weights random.
        download: the library's pretrained state dict.
        normalisation: mean and standard deviation per channel, of pixels from 0 to 1, as the library records them.
        classifier: prefix of the keys of its classifier, which a state dict may hold and which are left out.
        by_hand: what to fetch from where if the download fails.
    """

    dim: int
    build: Callable[[], nn.Module]
    download: Callable[[], State]
    normalisation: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]]
    classifier: str
    by_hand: str


def build_backbone(kind: str) -> nn.Module:
    """A backbone with random weights, frozen and in evaluation mode: what a saved classifier's weights fit."""
    return BACKBONES[kind].build().requires_grad_(False).eval()


def load_backbone(kind: str, weights: Path | None = None) -> nn.Module:
    """A pretrained backbone, frozen and in evaluation mode.

    Args:
        kind: one of `BACKBONES`.
        weights: a state dict as torchvision or timm publish it (.pth, or .safetensors); its classifier is left out.
            None: the library downloads it, or finds an earlier download.

    Returns:
        Normalised images (N, 3, 224, 224) to features (N, D).

    Raises:
        WeightsError: if the file is no state dict, has other keys or shapes than the backbone, or the download fails.
    """
    network = build_backbone(kind)
    if weights is None:
        state, source = _download(kind), f"the download of {kind}"
    else:
        state, source = _read(weights), str(weights)
    kept = {name: value for name, value in state.items() if not name.startswith(BACKBONES[kind].classifier)}
    if problems := _problems(kept, network.state_dict()):
        raise WeightsError(f"{source} must hold the weights of {kind}, got {'; '.join(problems)}")
    network.load_state_dict(kept, strict=False)  # what may lack is only what `_problems` leaves out
    return network


def normalisation_of(kind: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel that a backbone's images are normalised with.

    Returns:
        Both (3, 1, 1), in pixel values from 0 to 255.
    """
    mean, std = (torch.tensor(values, dtype=torch.float64) * 255 for values in BACKBONES[kind].normalisation())
    return mean.float()[:, None, None], std.float()[:, None, None]


def backbone_input(spec: InputSpec) -> InputSpec:
    """`spec` with the size and the channels that every backbone takes; its rules stay."""
    return spec.model_copy(update={"channels": 3, "height": SIDE, "width": SIDE})


def require_weights(kind: str, weights: Path | None) -> None:
    """Refuse weights that an encoder cannot use.

    Raises:
        WeightsError: if the encoder is no backbone, or the file is not there.
    """
    if weights is None:
        return
    if kind not in BACKBONES:
        raise WeightsError(f"--weights must go with the encoder {' or '.join(BACKBONES)}, got the encoder {kind}")
    if not weights.is_file():
        raise WeightsError(f"--weights must be a file of weights, got {weights}, which is no file")


def weights_digest(weights: Path | None) -> str:
    """What a run records of its weights: the file's SHA-256 in hexadecimal, or `download`."""
    return DOWNLOAD if weights is None else digest(weights)


def _problems(found: State, expected: State) -> list[str]:
    """What keeps a state dict from fitting; batch norm's counters are unused here and lack in old files."""
    missing = [name for name in expected if name not in found and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in found
        if name in expected and found[name].shape != expected[name].shape
    ]
    groups = {"no keys": missing, "the unknown keys": unexpected, "the shapes": shapes}
    return [f"{what} {_some(names)}" for what, names in groups.items() if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _read(file: Path) -> State:
    try:
        state = _load(file)
    except OSError as exc:
        raise WeightsError(f"{file} must be a readable file of weights, got {exc}") from exc
    except Exception as exc:  # a file of something else can raise anything in pickle and zipfile
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise WeightsError(f"{file} must be a state dict that torch or safetensors reads, got {reason}") from exc
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file} must be a state dict, tensors by name, got {type(state).__name__} of other things")
    return state


def _load(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _download(kind: str) -> State:
    backbone = BACKBONES[kind]
    try:
        return backbone.download()
    except Exception as exc:  # URLError, RuntimeError, the hub's own errors, httpx's
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise WeightsError(
            f"the weights of {kind} must be at hand, got a failed download ({reason}): "
            f"fetch {backbone.by_hand} and name it with --weights FILE"
        ) from exc


def _build_resnet18() -> nn.Module:
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None)
    network.fc = nn.Identity()
    return network


def _resnet18_weights() -> Any:
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.IMAGENET1K_V1


def _resnet18_normalisation() -> tuple[tuple[float, ...], tuple[float, ...]]:
    preset = _resnet18_weights().transforms()
    return tuple(preset.mean), tuple(preset.std)


def _build_vit(pretrained: bool = False) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(VIT, pretrained=pretrained, num_classes=0)
    return network


def _vit_normalisation() -> tuple[tuple[float, ...], tuple[float, ...]]:
    import timm

    config: Any = timm.get_pretrained_cfg(VIT)
    return config.mean, config.std


BACKBONES = {
    "resnet18": Backbone(
        dim=512,
        build=_build_resnet18,
        download=lambda: _resnet18_weights().get_state_dict(progress=False, check_hash=True),
        normalisation=_resnet18_normalisation,
        classifier="fc.",
        by_hand="https://download.pytorch.org/models/resnet18-f37072fd.pth",
    ),
    "vit-s16": Backbone(
        dim=384,
        build=_build_vit,
        download=lambda: _build_vit(pretrained=True).state_dict(),
        normalisation=_vit_normalisation,
        classifier="head.",
        by_hand=f"https://huggingface.co/timm/{VIT}/resolve/main/model.safetensors",
    ),
}
