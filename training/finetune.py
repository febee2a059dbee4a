"""Fine-tuning of a pretrained trunk: its blocks in order, which of them learn in an epoch, and how fast.

    thaw(trunk, spec, epoch=1)                     # the last blocks
    thaw(trunk, spec, epoch=spec.epochs)           # all but the frozen ones
    groups = parameter_groups(classifier, spec)    # for an optimiser

Blocks are numbered from the images to the features. Those of timm's networks are what timm says, the stem being the
first; of other networks they are the modules in a row, small ones before them included.

References: Howard & Ruder 2018, Universal Language Model Fine-tuning (layer-wise rates, gradual unfreezing), arXiv
1801.06146; Bao et al. 2021, BEiT (the decay per block), arXiv 2106.08254.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.fit_spec import FitSpec

Blocks = list[list[nn.Parameter]]


def blocks_of(trunk: nn.Module) -> Blocks:
    """The parameters of a trunk, block by block, from the images to the features."""
    trunk = _network_in(trunk)
    if hasattr(trunk, "group_matcher"):
        from timm.models import group_parameters

        network: Any = trunk
        groups = group_parameters(network, network.group_matcher(coarse=False), return_values=True)
        return [groups[number] for number in sorted(groups)]
    blocks: Blocks = [[]]
    for child in trunk.children():
        if blocks[-1] and any(True for _ in child.children()):
            blocks.append([])
        blocks[-1] += child.parameters()
    return blocks


def thaw(trunk: nn.Module, spec: FitSpec, epoch: int) -> None:
    """Let those parameters of a trunk learn that learn in an epoch, and no others.

    Raises:
        ValueError: if no block is left to learn after `spec.frozen_blocks`.
    """
    blocks = blocks_of(trunk)
    if spec.frozen_blocks >= len(blocks):
        raise ValueError(f"fit.frozen_blocks must be less than the encoder's {len(blocks)}, got {spec.frozen_blocks}")
    last = len(blocks) - spec.last_blocks if epoch <= spec.freeze_epochs else 0
    for number, block in enumerate(blocks):
        for parameter in block:
            parameter.requires_grad_(number >= max(spec.frozen_blocks, last))
    if not spec.train_depthwise:
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.requires_grad_(False)


def keep_statistics(trunk: nn.Module, spec: FitSpec) -> None:
    """Put batch norm into evaluation mode where it does not learn, or nowhere should."""
    for module in trunk.modules():
        learns = any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, _BatchNorm) and (spec.batch_norm == "eval" or not learns):
            module.eval()


def parameter_groups(classifier: nn.Module, trunk: nn.Module, spec: FitSpec) -> list[dict[str, Any]]:
    """What learns, with learning rates: `spec.lr` after the trunk, times `layer_decay` for every block before that."""
    blocks = blocks_of(trunk)
    of_trunk = {id(parameter) for block in blocks for parameter in block}
    groups = [[parameter for parameter in classifier.parameters() if id(parameter) not in of_trunk], *reversed(blocks)]
    learning = [[parameter for parameter in group if parameter.requires_grad] for group in groups]
    rates = [spec.lr * spec.layer_decay**steps for steps in range(len(groups))]
    return [{"params": group, "lr": lr} for group, lr in zip(learning, rates, strict=True) if group]


def _network_in(trunk: nn.Module) -> nn.Module:
    """The network itself, where modules without parameters follow it."""
    inner = [child for child in trunk.children() if any(True for _ in child.parameters())]
    return _network_in(inner[0]) if len(inner) == 1 and not hasattr(trunk, "group_matcher") else trunk
