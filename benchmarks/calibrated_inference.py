"""The cost of a calibration at inference: attached and folded against the same model without one.

All sides run in turn in one process, after a check that the folded model gives the scores of the
attached one, and a detached model exactly the original ones. Scale and shift are within a hundredth
of 1 and 0: scores hardly change, so all sides have the same work afterwards. All use logn_d2's
post-processing; the last column is the uncalibrated model with Detectron2's own.

    python benchmarks/calibrated_inference.py --rounds 20 --image-rounds 5
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from common import machine, seconds, spread
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from logn_d2.config import add_logn_config, config_file
from logn_d2.core import AffineCalibration
from logn_d2.modeling import attach, detach, fold

PLAIN = "uncalibrated"
# Spread of the logits and head start of background. Then a few in a hundred candidates are above
# LVIS's threshold of 1e-4, as in a trained detector.
LOGIT_STD, BACKGROUND = 1.2, 11.0
# Largest difference of a probability between folded and attached, whose sums round differently.
TOLERANCE = 1e-5


def make_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line."""
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(args.config_file or config_file("lvis_v1_mask_rcnn_R_50_FPN.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = args.device, ""
    cfg.MODEL.LOGN.CLASSIFIER = "linear"
    cfg.merge_from_list(args.opts)
    return cfg


def make_model(cfg: CfgNode, image: Tensor) -> nn.Module:
    """A model of random weights, whose batch norms keep activations in bounds."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()

    def measure(module: nn.Module, args: tuple) -> None:
        module.running_mean.copy_(args[0].mean(dim=(0, 2, 3)))
        module.running_var.copy_(args[0].var(dim=(0, 2, 3)))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [module.register_forward_pre_hook(measure) for module in norms]
    model.backbone(model.preprocess_image([{"image": image}]).tensor)
    for handle in handles:
        handle.remove()
    return model


def make_plausible(predictor: nn.Module, features: Tensor) -> None:
    """Give a linear classifier logits like a detector's."""
    layer = predictor.cls_score
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=LOGIT_STD / float(features.norm(dim=1).mean()))
        layer.bias[-1] = BACKGROUND


def make_sides(predictor: nn.Module) -> dict[str, nn.Module]:
    """The same box predictor in four ways."""
    noise = 0.02 * torch.rand(2, predictor.num_classes) - 0.01
    calibration = AffineCalibration(1 + noise[0], noise[1])
    attached, theirs = copy.deepcopy(predictor), copy.deepcopy(predictor)
    attach(attached, calibration)
    theirs.inference = functools.partial(FastRCNNOutputLayers.inference, theirs)
    return {
        PLAIN: predictor,
        "folded": fold(copy.deepcopy(predictor), calibration),
        "attached": attached,
        "Detectron2's post-processing": theirs,
    }


def check(sides: Mapping[str, nn.Module], features: Tensor, proposals: list[Instances]) -> None:
    """Compare the sides' probabilities.

    Raises:
        AssertionError: they differ where they should be equal.
    """
    probs = {
        name: torch.cat(list(side.predict_probs(side(features), proposals)))
        for name, side in sides.items()
    }
    difference = float((probs["folded"] - probs["attached"]).abs().max())
    assert difference < TOLERANCE, f"folded and attached differ by {difference}"
    assert not torch.equal(probs[PLAIN], probs["attached"])
    detached = copy.deepcopy(sides["attached"])
    detach(detached)
    again = torch.cat(list(detached.predict_probs(detached(features), proposals)))
    assert torch.equal(probs[PLAIN], again), "a detached model differs from the original"
    print(f"folded and attached: probabilities differ by at most {difference:.1e}")
    print("detached and never attached: equal, bit for bit")
    for name in (PLAIN, "attached"):
        count = int((probs[name][:, :-1] > sides[name].test_score_thresh).sum())
        print(f"{name}: {count:,} candidates above the score threshold")


def compare(
    what: str, run: Callable[[nn.Module], object], sides: Mapping[str, nn.Module],
    rounds: int, args: argparse.Namespace,
) -> dict[str, float]:  # fmt: skip
    """Print one line: milliseconds without calibration, and the other sides' ratios to it.

    Returns:
        dict[str, float]: each side's median milliseconds.
    """
    names = list(sides)
    clock = time.process_time if args.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        run(sides[name])  # warms up
    for index in range(rounds):
        shift = index % len(names)  # so that none is always the first
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(run, (sides[name],), args.device, clock))
    medians = {name: statistics.median(each) * 1e3 for name, each in times.items()}
    plain = times.pop(PLAIN)
    ratios = [spread([t / p for t, p in zip(each, plain)], 3) for each in times.values()]
    print(f"| {what} | {medians[PLAIN]:.1f} | {' | '.join(ratios)} |", flush=True)
    return medians


def random_proposals(count: int, size: tuple[int, int], device: str) -> list[Instances]:
    """Boxes anywhere in an image."""
    corner = torch.rand(count, 2) * torch.tensor([size[1], size[0]]) * 0.7
    boxes = torch.cat([corner, corner + 16 + torch.rand(count, 2) * 100], dim=1)
    return [Instances(size, proposal_boxes=Boxes(boxes.to(device)))]


def compare_all(model: nn.Module, image: Tensor, args: argparse.Namespace) -> None:
    """Print the table."""
    heads = model.roi_heads
    resolution = heads.box_pooler.output_size[0]
    channels = model.backbone.output_shape()[heads.box_in_features[0]].channels
    pooled = torch.randn(args.rois, channels, resolution, resolution, device=args.device).relu()
    features = heads.box_head(pooled)
    make_plausible(heads.box_predictor, features)
    sides = make_sides(heads.box_predictor)
    proposals = random_proposals(args.rois, (args.height, args.width), args.device)
    check(sides, features, proposals)
    predictions = {id(side): side(features) for side in sides.values()}

    def logits_only(side: nn.Module) -> object:
        return side.predict_probs(predictions[id(side)], proposals)

    def scores(side: nn.Module) -> object:
        return side.predict_probs(side(heads.box_head(pooled)), proposals)

    def detections(side: nn.Module) -> object:
        return side.inference(side(heads.box_head(pooled)), proposals)

    print(f"\n| part | {PLAIN} ms | {' | '.join(list(sides)[1:])} |\n|---|---|---|---|---|")
    lines = {
        "scores from logits": (logits_only, 10),
        "box head to scores": (scores, 1),
        "box head to detections": (detections, 1),
    }
    medians = {
        what: compare(what, run, sides, args.rounds * factor, args)
        for what, (run, factor) in lines.items()
    }
    if args.image_rounds:
        compare_images(model, image, args)
    # The first line's difference over the second line's whole: a millisecond of noise in a quarter
    # of a second would hide it.
    added = medians["scores from logits"]["attached"] - medians["scores from logits"][PLAIN]
    whole = medians["box head to scores"][PLAIN]
    print(f"\nattached adds {added:.2f} ms to the scores: {1 + added / whole:.4f}x of the box head")


def compare_images(model: nn.Module, image: Tensor, args: argparse.Namespace) -> None:
    """Print the line of the whole model, after giving it plausible logits."""
    captured = []
    handle = model.roi_heads.box_predictor.register_forward_pre_hook(
        lambda module, inputs: captured.append(inputs[0])
    )
    inputs = [{"image": image}]
    model(inputs)
    handle.remove()
    make_plausible(model.roi_heads.box_predictor, captured[0])
    sides = make_sides(model.roi_heads.box_predictor)

    def run(side: nn.Module) -> object:
        model.roi_heads.box_predictor = side
        return model(inputs)

    what = f"whole model, {image.shape[1]} x {image.shape[2]}, {len(captured[0])} RoIs"
    compare(what, run, sides, args.image_rounds, args)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="default: Mask R-CNN R50-FPN for LVIS v1")
    parser.add_argument("--rois", type=int, default=1000)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the box head")
    parser.add_argument("--image-rounds", type=int, default=5, help="rounds of the model, or 0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time, for a busy machine"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cfg = make_config(args)
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    print(f"{args.rois} RoIs x {classes} classes; {machine(args.device)}\n")
    image = torch.randint(256, (3, args.height, args.width)).float()
    model = make_model(cfg, image)
    compare_all(model, image, args)


if __name__ == "__main__":
    main()
