"""Any classification network of torchvision as a backbone of Detectron2, with or without an FPN.

Feature maps are named as those of Detectron2's ResNets: "res2" has stride 4, "res5" stride 32
("stem" is everything with stride 2), so configs need no other names. Images are (N, 3, H, W), H and
W multiples of 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from ..errors import UserError, check_choice, check_known
from .torchvision_weights import (
    PixelConvention,
    build_network,
    check_pixels,
    load_network_weights,
)

_STRIDES = {"stem": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
# Sides that differ tell height, width and channels apart.
_PROBE = (64, 96)


class TorchvisionBackbone(Backbone):
    """The levels of a classification network, without its classifier.

    Attributes:
        convention (PixelConvention): pixel convention of its weights, or None.
        nodes (dict[str, str]): for each level, the module of the network that produces it.
    """

    def __init__(
        self,
        network: str,
        weights: str = "",
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ) -> None:
        """Build the network.

        Args:
            network (str): a network of torchvision, such as "mobilenet_v2", or
                "efficientnet_lite0".
            weights (str): see `load_network_weights`; "" draws them at random.
            out_features (Sequence[str]): some of "stem" and "res2" to "res5".
            norm (str): "BN" leaves batch norm unchanged, "FrozenBN" freezes its statistics and
                parameters, "SyncBN" shares its statistics between processes.
            freeze_at (int): 0 trains everything, 1 freezes all layers before "res2", 2 also "res2",
                and so on, like MODEL.BACKBONE.FREEZE_AT.

        Raises:
            UnknownNameError: there is no such network, level or norm.
            UserError: the network has no such level, or the weights belong to another network.
        """
        super().__init__()
        for name in out_features:
            check_known("level", name, _STRIDES)
        full = build_network(network)
        self.convention: PixelConvention | None = None
        if weights:
            self.convention = load_network_weights(full, network, weights)
        # Found by running the network: torchvision has no common names for its stages.
        levels = _levels(full, network)
        missing = [name for name in out_features if name not in levels]
        if missing:
            raise UserError(
                f"'{network}' has no feature map of stride {_STRIDES[missing[0]]} for "
                f"'{missing[0]}'; it has {', '.join(levels) or 'none of height and width'}."
            )
        self._out_features = sorted(out_features, key=lambda name: _STRIDES[name])
        self.nodes = {name: levels[name][0] for name in self._out_features}
        self._out_feature_strides = {name: _STRIDES[name] for name in self._out_features}
        self._out_feature_channels = {name: levels[name][1] for name in self._out_features}
        # By the names of the whole network, before the extractor drops what it does not need.
        frozen = _parameters_up_to(full, levels, freeze_at)
        self.body = create_feature_extractor(
            full,
            return_nodes={node: name for name, node in self.nodes.items()},
            suppress_diff_warning=True,  # the modes differ in dropout and stochastic depth
        )
        # Before the norm is replaced: a frozen BatchNorm has no parameters to look up.
        _freeze(self.body, frozen)
        self.body = _with_norm(self.body, norm)

    @property
    def size_divisibility(self) -> int:
        """Divisor of height and width with which each level is exactly half of the previous one."""
        return max(self._out_feature_strides.values())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See the class.

        Args:
            image (Tensor): (N, 3, H, W), normalised.

        Returns:
            dict[str, Tensor]: (N, C, H / stride, W / stride) of each level.
        """
        return self.body(image)


def _levels(network: nn.Module, name: str) -> dict[str, tuple[str, int]]:
    """The module that produces each level, and its channels.

    All networks of torchvision contain a row of blocks: the module whose children have the most
    strides. A level is the output of its last block.
    """
    shapes = _output_shapes(network, name)
    rows = {
        parent: [
            (f"{parent}.{child}".lstrip("."), module)
            for child, module in container.named_children()
            if f"{parent}.{child}".lstrip(".") in shapes
        ]
        for parent, container in network.named_modules()
    }
    strides = {p: {_stride(shapes[n]) for n, _ in row} - {None} for p, row in rows.items()}
    # `max` takes the first of equal ones, the outermost container.
    row = rows[max(strides, key=lambda parent: len(strides[parent]))]
    levels = {}
    for level, stride in _STRIDES.items():
        blocks = [(n, module) for n, module in row if _stride(shapes[n]) == stride]
        if blocks:
            node = _last_block(blocks)
            levels[level] = (node, shapes[node][1])
    return levels


def _output_shapes(network: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    """The shape of each module's output for a small image, in the order of execution."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(module_name: str):
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                # A module that runs twice keeps its last shape.
                shapes[module_name] = tuple(output.shape)

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in network.named_modules() if n]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, *_PROBE))
    except (RuntimeError, AssertionError) as error:  # fixed image sizes, such as ViT's
        raise UserError(
            f"'{name}' does not take images of any size ({error}). Choose a convolutional network."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    return shapes


def _stride(shape: tuple[int, ...]) -> int | None:
    """The stride of a feature map if it is one of ``_STRIDES``."""
    for stride in _STRIDES.values():
        # Both sides, so that a map of another kind with a matching height is not taken for a level.
        if len(shape) == 4 and shape[2:] == tuple(side // stride for side in _PROBE):
            return stride
    return None


def _last_block(blocks: list[tuple[str, nn.Module]]) -> str:
    """The last module with a spatial convolution, plus following modules without convolutions.

    MobileNets and EfficientNets continue with a 1 x 1 convolution that widens the features for the
    classifier and costs more than a block.
    """
    kernels = [
        max((max(m.kernel_size) for m in module.modules() if isinstance(m, nn.Conv2d)), default=0)
        for _, module in blocks
    ]
    spatial = [position for position, kernel in enumerate(kernels) if kernel > 1]
    if not spatial:
        return blocks[-1][0]
    last = spatial[-1]
    while last + 1 < len(blocks) and kernels[last + 1] == 0:
        last += 1
    return blocks[last][0]


def _parameters_up_to(
    network: nn.Module, levels: dict[str, tuple[str, int]], freeze_at: int
) -> set[str]:
    """Names of the parameters that FREEZE_AT freezes; torchvision registers in order of use."""
    if freeze_at <= 0:
        return set()
    last = {1: "stem"}.get(freeze_at, f"res{freeze_at}")
    if last not in levels:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; this network has stages 1 to "
            f"{max(int(n.removeprefix('res')) for n in levels if n != 'stem')}."
        )
    names = [name for name, _ in network.named_parameters()]
    ends = [i for i, n in enumerate(names) if n.startswith(levels[last][0] + ".")]
    if not ends:  # a pooling layer: up to the last parameter before it
        modules = [name for name, _ in network.named_modules()]
        before = set(modules[: modules.index(levels[last][0])])
        ends = [i for i, n in enumerate(names) if n.rpartition(".")[0] in before]
    return set(names[: ends[-1] + 1]) if ends else set()


def _freeze(body: nn.Module, names: set[str]) -> None:
    """Freeze parameters, and the batch norms that they belong to."""
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            # Running statistics of frozen layers would drift in training mode.
            if isinstance(child, nn.BatchNorm2d) and not child.weight.requires_grad:
                setattr(parent, name, FrozenBatchNorm2d.convert_frozen_batchnorm(child))


def _with_norm(body: nn.Module, norm: str) -> nn.Module:
    """The network with this kind of batch norm."""
    kinds = {
        "BN": lambda module: module,
        "FrozenBN": FrozenBatchNorm2d.convert_frozen_batchnorm,
        "SyncBN": nn.SyncBatchNorm.convert_sync_batchnorm,
    }
    check_choice("MODEL.RESNETS.NORM of a network of torchvision", norm, kinds)
    return kinds[norm](body)


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(
    cfg: CfgNode,
    input_shape: ShapeSpec | None = None,
    out_features: Sequence[str] | None = None,
) -> TorchvisionBackbone:
    """A network of torchvision, without FPN.

    MODEL.LOGN.BACKBONE names network and weights; MODEL.RESNETS.OUT_FEATURES and .NORM, and
    MODEL.BACKBONE.FREEZE_AT work as for ResNets. MODEL.WEIGHTS, a whole detector, takes precedence
    over MODEL.LOGN.BACKBONE.WEIGHTS.

    Args:
        cfg (CfgNode): with MODEL.LOGN.
        input_shape (ShapeSpec): shape of images; three channels.
        out_features (Sequence[str]): levels to use instead of the config's.
    """
    node = cfg.MODEL.LOGN.BACKBONE
    if input_shape is not None and input_shape.channels != 3:
        raise UserError(
            f"'{node.NETWORK}' takes 3 channels, but images have {input_shape.channels}."
        )
    backbone = TorchvisionBackbone(
        node.NETWORK,
        # A detector's checkpoint replaces the backbone's weights, so they need not be loaded or
        # downloaded.
        "" if cfg.MODEL.WEIGHTS else node.WEIGHTS,
        out_features=out_features or cfg.MODEL.RESNETS.OUT_FEATURES,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    if backbone.convention is not None:
        check_pixels(
            backbone.convention, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
        )
    return backbone


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """A network of torchvision with an FPN, as MODEL.FPN describes it.

    Args:
        cfg (CfgNode): as for `build_torchvision_backbone`.
        input_shape (ShapeSpec): shape of images.
    """
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_torchvision_backbone(cfg, input_shape, fpn.IN_FEATURES),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=fpn.FUSE_TYPE,
    )
