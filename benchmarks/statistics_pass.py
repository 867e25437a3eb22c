"""The statistics pass, per image: ours against the method of the released LogN code.

The released code puts a BatchNorm1d behind the classifier and trains for one epoch at learning rate
0: all losses, also of masks, backward pass, optimizer step. Ours runs forward to the logits.
Both load the same images in the same process, with the same resize; theirs needs the masks too. The
sides alternate, after a check that they collect the same statistics of the same RoIs.

    python benchmarks/statistics_pass.py --rounds 5
    python benchmarks/statistics_pass.py --config-file configs/glyphs_lvis_mask_rcnn_R_50_FPN.yaml
    python benchmarks/statistics_pass.py --memory
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import machine, seconds, spread
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import DataLoader

from logn_d2.collection import LogitStatisticsCollector, collect_statistics
from logn_d2.config import add_logn_config, config_file
from logn_d2.core import LogitMoments, LogitStatistics
from logn_d2.data.loader import PassDataset, build_statistics_loader
from logn_d2.modeling.box_predictors import find_box_predictors
from logn_d2.modeling.recording import Recording, shadowed
from logn_d2.modeling.stages import StageOutput

DATASET = "drawn_benchmark"
MOMENTUM = 5e-5  # of the released configs
# Largest difference of the two sides' statistics of the same RoIs, in std of the logits: with
# gradients the network rounds differently (frozen batch norm uses another implementation).
TOLERANCE = 1e-4


def draw_images(folder: Path, args: argparse.Namespace, num_classes: int) -> list[dict]:
    """Images with coloured polygons on noise, in Detectron2's data set format."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(args.images):
        noise = rng.integers(0, 256, (args.height, args.width, 3), dtype=np.uint8)
        image = Image.fromarray(noise // 2 + 64)
        objects = []
        for _ in range(args.objects):
            size = np.exp(rng.uniform(np.log(24), np.log(args.height * 0.6), 2))
            corner = rng.uniform(0, 1, 2) * ((args.width, args.height) - size)
            unit = np.array([[0.5, 0], [1, 0.4], [0.8, 1], [0.2, 1], [0, 0.4]])
            polygon = (corner + unit * size).round(1)
            colour = tuple(rng.integers(0, 256, 3).tolist())
            ImageDraw.Draw(image).polygon([tuple(point) for point in polygon], fill=colour)
            objects.append(
                {
                    "bbox": [*polygon.min(axis=0), *polygon.max(axis=0)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": int(rng.integers(num_classes)),
                    "segmentation": [polygon.flatten().tolist()],
                }
            )
        path = folder / f"{index}.jpg"
        image.save(path, quality=90)
        shape = {"height": args.height, "width": args.width}
        records.append({"file_name": str(path), "image_id": index, **shape, "annotations": objects})
    return records


def make_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, on the drawn images, at learning rate 0."""
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(args.config_file or config_file("lvis_v1_mask_rcnn_R_50_FPN.yaml"))
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (DATASET,)
    cfg.DATALOADER.NUM_WORKERS = 0  # so that loading time counts fully on both sides
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = args.height, max(args.width, args.height)
    cfg.MODEL.LOGN.COLLECT.AUGMENT = False
    cfg.SOLVER.BASE_LR = 0.0
    cfg.merge_from_list(args.opts)
    return cfg


def plausible_norms(model: nn.Module, loader: DataLoader) -> None:
    """Give batch norms, frozen or not, the mean and variance of their inputs.

    Without it, activations of random weights grow with depth, and the proposals are useless.
    """

    def measure(module: nn.Module, args: tuple) -> None:
        axes = (0, 2, 3)
        module.running_mean.copy_(args[0].mean(dim=axes))
        module.running_var.copy_(args[0].var(dim=axes))

    kinds = (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)
    norms = [module for module in model.modules() if isinstance(module, kinds)]
    handles = [module.register_forward_pre_hook(measure) for module in norms]
    model.eval()
    with torch.no_grad():
        model.backbone(model.preprocess_image(next(iter(loader))).tensor)
    for handle in handles:
        handle.remove()


class ReleasedWay:
    """One epoch of training at learning rate 0, with a BatchNorm1d behind each classifier.

    Args:
        cfg (CfgNode): config of the model.
        model (nn.Module): with its weights loaded.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.model = model
        self.optimizer = build_optimizer(cfg, model)
        self.predictors = find_box_predictors(model)
        columns = cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
        self.norms = [
            nn.BatchNorm1d(columns, momentum=MOMENTUM, affine=False).to(cfg.MODEL.DEVICE)
            for _ in self.predictors
        ]
        self.seen: list[list[Tensor]] = [[] for _ in self.predictors]
        self.rois = ""

    def __call__(self, loader: DataLoader, keep: bool = False) -> None:
        """Pass over the images, optionally keeping the logits of each."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # as the released configs have it (norm_eval)
        handles = [
            predictor.register_forward_hook(functools.partial(self._normalize, index, keep))
            for index, predictor in enumerate(self.predictors)
        ]
        try:
            with EventStorage() as storage:
                for batch in loader:
                    loss = sum(self.model(batch).values())
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    latest = storage.latest()
            kinds = [latest[f"roi_head/num_{kind}_samples"][0] for kind in ("fg", "bg")]
            self.rois = "{:.0f} foreground, {:.0f} background".format(*kinds)
        finally:
            for handle in handles:
                handle.remove()

    def _normalize(
        self, stage: int, keep: bool, module: nn.Module, args: tuple, output: tuple
    ) -> tuple:
        if keep:
            self.seen[stage].append(output[0].detach())
        return (self.norms[stage](output[0]), *output[1:])


def training_loader(cfg: CfgNode, ours: DataLoader, records: Sequence[dict]) -> DataLoader:
    """The images of our loader, in its order and size, with their masks."""
    arguments = DatasetMapper.from_config(cfg, is_train=True)
    arguments["augmentations"] = DatasetMapper.from_config(cfg, is_train=False)["augmentations"]
    by_id = {record["image_id"]: index for index, record in enumerate(records)}
    order = torch.tensor([by_id[batch[0]["image_id"]] for batch in ours])
    images = PassDataset(records, order, DatasetMapper(**arguments))
    return DataLoader(images, batch_size=1, sampler=range(len(order)), collate_fn=list)


@contextlib.contextmanager
def sampled_rois(model: nn.Module, kept: list, replay: bool) -> Iterator[None]:
    """Record the sampled RoIs of each image, or replay them in the same order."""
    method = model.roi_heads.label_and_sample_proposals

    def sample(*args: object) -> list:
        if not replay:
            kept.append(method(*args))
        found = kept.pop(0) if replay else kept[-1]
        return [of_image[:] for of_image in found]

    with shadowed(model.roi_heads, "label_and_sample_proposals", sample):
        yield


@contextlib.contextmanager
def crowded(model: nn.Module, number: int) -> Iterator[None]:
    """Put some of the proposals around objects, like a trained model's.

    Untrained proposals hardly meet an object, so the mask branch would have little work.
    """
    forward = model.proposal_generator.forward

    def propose(images: object, features: object, targets: list) -> tuple:
        proposals, losses = forward(images, features, targets)
        for each, target in zip(proposals, targets, strict=True):
            chosen = torch.arange(min(number, len(each)))
            box = target.gt_boxes.tensor[chosen % len(target)]
            extent = (box[:, 2:] - box[:, :2]).repeat(1, 2)
            noise = torch.randn(box.shape, generator=torch.Generator().manual_seed(0))
            each.proposal_boxes.tensor[chosen] = box + 0.08 * extent * noise.to(box.device)
            each.proposal_boxes.clip(each.image_size)
        return proposals, losses

    with shadowed(model.proposal_generator, "forward", propose):
        yield


def check_equality(
    model: nn.Module, theirs: ReleasedWay, ours: DataLoader, training: DataLoader
) -> None:
    """Print the differences of the two sides' statistics of the same RoIs.

    Raises:
        AssertionError: larger than rounding can explain.
    """
    kept: list = []
    for norm in theirs.norms:
        norm.reset_running_stats()
    with sampled_rois(model, kept, replay=False):
        theirs(training, keep=True)
    with sampled_rois(model, list(kept), replay=True):
        exact = collect_statistics(model, ours)
    with sampled_rois(model, list(kept), replay=True):
        moving = collect_statistics(model, ours, estimator="ema", momentum=MOMENTUM)
    for index, (logits, norm) in enumerate(zip(theirs.seen, theirs.norms, strict=True)):
        stage, averages = exact.stages[index], moving.stages[index]
        moments = LogitMoments(logits[0].shape[1])
        for of_image in logits:
            moments.update(of_image.cpu())
        assert torch.equal(moments.count, stage.count), "another number of RoIs"
        # After few steps of a small momentum, the accumulated changes must agree.
        moved = 1 - (1 - MOMENTUM) ** len(logits)
        mean, var = norm.running_mean.cpu(), norm.running_var.cpu()
        differences = {
            "mean": (moments.mean - stage.mean) / stage.std,
            "std": moments.var.sqrt() / stage.std - 1,
            "moving mean": (mean - averages.mean) / stage.std / moved,
            "moving variance": (var - averages.var) / stage.var / moved,
        }
        largest = {name: float(each.abs().max()) for name, each in differences.items()}
        found = ", ".join(f"{name} {value:.0e}" for name, value in largest.items())
        print(f"stage {index}, largest differences in std (variances): {found}")
        # BatchNorm1d has float32 buffers, where a small momentum leaves few digits.
        assert max(largest["mean"], largest["std"]) < TOLERANCE, "different statistics"
    theirs.seen = [[] for _ in theirs.seen]


def compare(
    ours: Callable, theirs: Callable, rounds: int, device: str, clock: Callable[[], float]
) -> list[list[float]]:
    """Seconds of both sides in each round; which goes first alternates."""
    times = []
    for number in range(rounds):
        sides = [ours, theirs]
        order = [0, 1] if number % 2 else [1, 0]
        found = [0.0, 0.0]
        for side in order:
            found[side] = seconds(sides[side], device=device, clock=clock)
        times.append(found)
    return times


class Clock:
    """Seconds spent in parts of our pass, by name."""

    def __init__(self, device: str, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._clock = clock

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, timed."""

        def run(*args: object, **kwargs: object) -> object:
            if self._device == "cuda":
                torch.cuda.synchronize()
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                if self._device == "cuda":
                    torch.cuda.synchronize()
                elapsed = self._clock() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

        return run


def split_of(
    model: nn.Module, loader: DataLoader, device: str, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of each part of our pass over all images."""
    watch, heads = Clock(device, clock), model.roi_heads
    single = [each for each in (heads.box_head, heads.box_predictor) if isinstance(each, nn.Module)]
    places = [
        ("backbone", model.backbone, "forward"),
        ("RPN", model.proposal_generator, "forward"),
        ("sampling of RoIs", heads, "label_and_sample_proposals"),
        ("RoIAlign", heads.box_pooler, "forward"),
    ]
    for module in single:
        parts = module if isinstance(module, nn.ModuleList) else [module]
        places += [("box head", part, "forward") for part in parts]
    process = watch.timed("moments", LogitStatisticsCollector.process)
    dataset = loader.dataset
    load = watch.timed("data", type(dataset).__getitem__)
    with contextlib.ExitStack() as stack:
        for name, module, method in places:
            timed = watch.timed(name, getattr(module, method))
            stack.enter_context(shadowed(module, method, timed))
        stack.enter_context(mock.patch.object(LogitStatisticsCollector, "process", process))
        stack.enter_context(mock.patch.object(type(dataset), "__getitem__", load))
        total = seconds(collect_statistics, (model, loader), device, clock)
    return {**watch.seconds, "all else": total - sum(watch.seconds.values())}


def resident_bytes() -> int:
    """Memory in use by this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def state_bytes(collected: LogitStatistics) -> int:
    """Size of all tensors of the state, the content of a partial file."""
    tensors = [tensor for stage in collected.stages for tensor in stage.tensors("s").values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def show_memory(num_rois: int) -> None:
    """Print the size of the collector's state for growing numbers of images and classes."""
    print("| classes | images | state KiB | per class bytes | process grew by KiB |")
    print("|---|---|---|---|---|")
    for num_classes in (150, 1203, 12030):
        predictor = nn.Module()
        predictor.num_classes = num_classes
        predictor.cls_score = nn.Linear(1, num_classes + 1)
        collector, seen, start = LogitStatisticsCollector(), 0, None
        for images in (10, 100, 500):
            for _ in range(images - seen):
                logits = torch.randn(num_rois, num_classes + 1)
                stage = StageOutput(predictor, (logits, logits[:, :0]), [range(num_rois)])
                collector.process([{}], Recording([stage]))
            seen, start = images, resident_bytes() if start is None else start
            size = state_bytes(collector.own_statistics())
            print(
                f"| {num_classes:,} | {images} | {size / 1024:.0f} | {size / num_classes:.0f} "
                f"| {(resident_bytes() - start) / 1024:,.0f} |",
                flush=True,
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help="default: R50-FPN of the paper, K = 1,203")
    parser.add_argument("--images", type=int, default=3, help="images per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--objects", type=int, default=12, help="objects per image (LVIS: 13)")
    parser.add_argument(
        "--crowd",
        type=int,
        nargs="+",
        default=[0, 60, 400],
        metavar="N",
        help="proposals placed around objects, as a trained model's are; sets the number of "
        "foreground RoIs in the mask branch (default 0 60 400)",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--cpu-time",
        dest="clock",
        action="store_const",
        default=time.perf_counter,
        const=time.process_time,
        help="measure CPU time, for a busy machine",
    )
    parser.add_argument("--memory", action="store_true", help="only measure memory of the state")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser.parse_args()


def benchmark(args: argparse.Namespace, folder: Path) -> None:
    """Check equality, then time both sides, then the parts of ours."""
    cfg = make_config(args)
    records = draw_images(folder, args, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).thing_classes = list(
        map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    ours = build_statistics_loader(cfg, dataset=records)
    training = training_loader(cfg, ours, records)
    plausible_norms(model, ours)
    theirs = ReleasedWay(cfg, model)
    rows = []
    for number in args.crowd:
        with crowded(model, number):
            check_equality(model, theirs, ours, training)
            times = compare(
                lambda: collect_statistics(model, ours),
                lambda: theirs(training),
                args.rounds,
                args.device,
                args.clock,
            )
        own, their = (statistics.median(side) / len(records) for side in zip(*times))
        ratios = spread([a / b for a, b in times], 3)
        rows.append(f"| {theirs.rois} | {their:.3f} | {own:.3f} | {ratios} |")
    print("\n| RoIs of the last image | released way s/image | ours s/image | ratio (range) |")
    print("|---|---|---|---|", *rows, "", sep="\n")
    parts = split_of(model, ours, args.device, args.clock)
    print("| part of ours | s/image | share |")
    print("|---|---|---|")
    for name, part in parts.items():
        share = part / sum(parts.values())
        print(f"| {name} | {part / len(records):.4f} | {share:.1%} |")


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    print(machine(args.device))
    if args.memory:
        show_memory(num_rois=512)
        return
    print(
        f"{args.images} images of {args.height} x {args.width} with {args.objects} objects, "
        f"{args.rounds} rounds, {args.clock.__name__}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        benchmark(args, Path(folder))


if __name__ == "__main__":
    main()
