"""Finite data loaders for the passes over a data set: statistics, and sweeps.

The images of a pass are numbered by their *position* in it. Process r of W takes the positions r,
r + W, ..., so that every one is passed exactly once, and whatever is random about an image follows
from the seed and its position: not from the number of processes, of workers, or from where an
interrupted pass went on.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm

from ..errors import UserError
from .mappers import MAPPERS, Mapper, build_mapper
from .rng import seeded_rng
from .samplers import ClassAwareTrainingSampler, repetitions

__all__ = [
    "PassDataset",
    "build_class_aware_loader",
    "build_evaluation_loader",
    "build_statistics_loader",
    "statistics_mapper",
    "training_images",
]

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class PassDataset(torchdata.Dataset):
    """The images of one pass in their order, each mapped with its own random numbers.

    Args:
        records (Sequence[dict]): N images in Detectron2's data set form.
        order (Tensor): (P,) int64, which record is at each position; records may repeat.
        mapper (Callable): for example a DatasetMapper.
        seed (int): of what the mapper draws.
        needs_instances (bool): whether mapped images must have ground truth.
        weights (Tensor): (P,) how many images each position counts for; None for one each.
    """

    def __init__(
        self,
        records: Sequence[Record],
        order: torch.Tensor,
        mapper: Mapper,
        *,
        seed: int = 0,
        needs_instances: bool = False,
        weights: torch.Tensor | None = None,
    ) -> None:
        # Serialized: as Python objects the records would be copied into every worker.
        self._records = DatasetFromList(list(records), copy=False)
        self._order = order
        self._mapper = mapper
        self._seed = seed
        self._needs_instances = needs_instances
        self._weights = weights

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> Record:
        index = int(self._order[position])
        record = self._records[index]
        with seeded_rng(self._seed, position):
            mapped = map_record(self._mapper, record)
        if self._needs_instances and "instances" not in mapped:
            raise UserError(
                f"'{record.get('file_name')}' has no annotations, which sampled RoIs need. Set "
                "MODEL.LOGN.COLLECT.POPULATION to proposals, or register the data set with them."
            )
        mapped.setdefault("image_id", index)
        mapped["statistics_index"] = position
        if self._weights is not None:
            mapped["statistics_weight"] = float(self._weights[position])
        return mapped

    @property
    def in_order(self) -> bool:
        """Whether images come in the data set's order, so that a beginning is no random sample."""
        return len(self) > 1 and bool((self._order.diff() >= 0).all())

    def digest(self) -> str:
        """A hash of which images are passed, in which order: 16 hexadecimal digits."""
        names = [str(record.get("file_name")) for record in self._records]
        content = "\n".join(names).encode() + self._order.numpy().tobytes()
        if self._weights is not None:
            content += self._weights.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def build_statistics_loader(
    cfg: CfgNode,
    *,
    skip: int = 0,
    dataset: Sequence[Record] | None = None,
    mapper: Mapper | None = None,
) -> torchdata.DataLoader:
    """A finite loader over the training set with its annotations, for the statistics pass.

    Images come one at a time in a random order that is fixed by the seed, so that any beginning of
    the pass is a random sample of it. ``cfg.MODEL.LOGN.COLLECT`` decides how often an image counts,
    how many come, and whether they are augmented. An image that training repeats comes once, with
    the number of its repetitions as weight; augmented, or for moving averages, which have no
    weights, it comes again each time.

    Args:
        cfg (CfgNode): as used for training.
        skip (int): batches of this process that are done already.
        dataset (Sequence[dict]): instead of ``cfg.DATASETS.TRAIN``, filtered already.
        mapper (Callable): instead of Detectron2's; it must keep the annotations.

    Returns:
        DataLoader: of lists of one mapped image (for image classifiers of
        MODEL.LOGN.IMAGE.TEST_BATCH), this process's share. Each image has
        "statistics_index", its position in the whole pass, and where images count differently
        "statistics_weight".

    Raises:
        ValueError: there are no images to pass over, or they have no annotations.
    """
    collect = cfg.MODEL.LOGN.COLLECT
    keeps_masks = _filtering_needs_masks(cfg)
    if dataset is None:
        dataset = training_images(cfg)
    order, weights = _pass_order(cfg, dataset)
    records = dataset
    if mapper is None and not keeps_masks:  # a mapper of the user's own may need everything
        records = [_without_masks(record, drop_empty=cfg.MODEL.MASK_ON) for record in dataset]
    logger.info(
        "Statistics pass over %d images of %s (%d in the set, %s, augmentation %s)",
        len(order),
        ", ".join(cfg.DATASETS.TRAIN),
        len(records),
        _repeating(cfg),
        "on" if collect.AUGMENT else "off",
    )
    images = PassDataset(
        records,
        order,
        mapper or statistics_mapper(cfg),
        seed=collect.SEED,
        needs_instances=collect.POPULATION not in ("proposals", "images"),
        weights=weights,
    )
    return _loader(images, skip, cfg.DATALOADER.NUM_WORKERS, _batch_size(cfg))


def build_evaluation_loader(
    cfg: CfgNode, dataset_name: str, *, skip: int = 0
) -> torchdata.DataLoader:
    """A finite loader over an evaluation set that can begin in the middle.

    Args:
        cfg (CfgNode): a Detectron2 config; the test-time mapper is made from it.
        dataset_name (str): a registered data set.
        skip (int): batches of this process that are done already.

    Returns:
        DataLoader: of lists of one mapped image, this process's share.
    """
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        index = list(cfg.DATASETS.TEST).index(dataset_name)
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[index]]
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False, proposal_files=files)
    records = [{k: v for k, v in record.items() if k != "annotations"} for record in records]
    mapper = build_mapper(cfg, is_train=False)
    images = PassDataset(records, torch.arange(len(records)), mapper)
    return _loader(images, skip, cfg.DATALOADER.NUM_WORKERS, _batch_size(cfg))


def build_class_aware_loader(cfg: CfgNode, images_per_class: int) -> torchdata.DataLoader:
    """A finite loader over training images, augmented, of every class equally many.

    Classes take turns, in a new order each time. Where a class has fewer images, they come again.

    Args:
        cfg (CfgNode): as used for training.
        images_per_class (int): on each process.

    Returns:
        DataLoader: of lists of one mapped image, this process's share, the same number on all.
    """
    records = training_images(cfg)
    sampler = ClassAwareTrainingSampler.from_config(cfg, records)
    shape = (images_per_class, comm.get_world_size(), sampler.num_classes)
    drawn = itertools.islice(sampler.stream(), math.prod(shape))
    # Process r gets the positions r, r + W, ...: whole rounds of all classes.
    order = torch.tensor(list(drawn), dtype=torch.int64).reshape(shape).transpose(1, 2).flatten()
    images = PassDataset(records, order, build_mapper(cfg, is_train=True), seed=max(cfg.SEED, 0))
    return _loader(images, 0, cfg.DATALOADER.NUM_WORKERS)


def training_images(cfg: CfgNode) -> list[Record]:
    """The images that training uses: ``cfg.DATASETS.TRAIN``, filtered as training filters them.

    Raises:
        ValueError: there are none.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError(
            "DATASETS.TRAIN is empty, so there are no training images. Name the data set that the "
            "model is trained on."
        )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    try:
        return get_detection_dataset_dicts(
            names,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=(
                cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
            ),
        )
    except AssertionError as error:
        raise UserError(
            f"The training set {', '.join(names)} can't be used: {error} Check DATASETS.TRAIN, and "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS, which removes images without annotations or "
            f"with crowds (iscrowd 1) only. {_count_crowds(names)}"
        ) from error


def _count_crowds(names: Sequence[str]) -> str:
    """A sentence on the crowds of data sets, which training leaves out."""
    objects = [o for n in names for r in DatasetCatalog.get(n) for o in r.get("annotations", ())]
    return f"{sum(o.get('iscrowd', 0) != 0 for o in objects)} of {len(objects)} objects are crowds."


def map_record(mapper: Mapper, record: Record) -> Record | None:
    """Loads what a record names.

    Raises:
        ValueError: the image can't be decoded; PIL's own message does not tell which one.
    """
    try:
        return mapper(record)
    except FileNotFoundError:  # names the file
        raise
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"The image {record.get('file_name')} can't be read ({error}). Mend the file or leave "
            "it out of the json; `logn data check` looks at all of them."
        ) from error


def statistics_mapper(cfg: CfgNode) -> Mapper:
    """Detectron2's training mapper, with the test-time resize unless COLLECT.AUGMENT is set.

    Boxes and classes are as in training. Masks are left out where they have no influence on which
    objects are kept, and key points always: nothing is trained here.
    """
    if cfg.MODEL.META_ARCHITECTURE in MAPPERS:
        return build_mapper(cfg, is_train=cfg.MODEL.LOGN.COLLECT.AUGMENT)
    arguments = DatasetMapper.from_config(cfg, is_train=True)
    if not cfg.MODEL.LOGN.COLLECT.AUGMENT:
        arguments["augmentations"] = DatasetMapper.from_config(cfg, is_train=False)["augmentations"]
        arguments["recompute_boxes"] = False
    arguments["use_instance_mask"] = _filtering_needs_masks(cfg)
    arguments["use_keypoint"] = False
    return DatasetMapper(**arguments)


def _filtering_needs_masks(cfg: CfgNode) -> bool:
    """Whether the mapper could drop or change an object because of its mask.

    It does when a crop cuts the mask off, or when a bitmap loses its last pixel in the resize.
    Polygons survive every resize and flip.
    """
    crops = cfg.INPUT.CROP.ENABLED and cfg.MODEL.LOGN.COLLECT.AUGMENT
    return cfg.MODEL.MASK_ON and (crops or cfg.INPUT.MASK_FORMAT != "polygon")


def _without_masks(record: Record, drop_empty: bool) -> Record:
    """The record without what is slow to copy and decode; the given one is not changed.

    With masks on, Detectron2's mapper drops an object whose list of polygons is empty; since the
    mapper here sees no masks, ``drop_empty`` does it.
    """
    light = {k: v for k, v in record.items() if k not in ("annotations", "sem_seg_file_name")}
    if "annotations" in record:
        light["annotations"] = [
            {k: v for k, v in annotation.items() if k not in ("segmentation", "keypoints")}
            for annotation in record["annotations"]
            if not drop_empty or annotation.get("segmentation", True)
        ]
    return light


def _repeating(cfg: CfgNode) -> str:
    if not cfg.MODEL.LOGN.COLLECT.REPEAT:
        return "each once"
    return "weighted as training repeats them" if _weighs(cfg) else "repeated as in training"


def _weighs(cfg: CfgNode) -> bool:
    """Whether an image's repetitions are a weight: all its views are the same picture."""
    collect = cfg.MODEL.LOGN.COLLECT
    return collect.REPEAT and not collect.AUGMENT and collect.ESTIMATOR == "exact"


def _pass_order(
    cfg: CfgNode, records: Sequence[Record]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(P,) int64, the record at each position of the pass, and (P,) weights where these differ."""
    collect = cfg.MODEL.LOGN.COLLECT
    if not len(records):
        raise UserError(
            f"There are no images in {', '.join(cfg.DATASETS.TRAIN)} to gather statistics from. "
            "Check DATASETS.TRAIN and DATALOADER.FILTER_EMPTY_ANNOTATIONS."
        )
    generator = torch.Generator().manual_seed(collect.SEED % 2**63)
    order = torch.arange(len(records))
    factors = _factors(cfg, records) if collect.REPEAT else torch.ones(len(records))
    if _weighs(cfg):
        order = order[factors > 0]  # class-aware sampling never draws an image of no class
    elif collect.REPEAT:
        # Stochastic rounding, as the sampler does each epoch.
        whole = factors.trunc()
        copies = whole + (torch.rand(len(factors), generator=generator) < factors - whole)
        order = torch.repeat_interleave(order, copies.long())
    order = order[torch.randperm(len(order), generator=generator)]
    if collect.MAX_IMAGES > 0:
        order = order[: collect.MAX_IMAGES]
    weights = factors.double()[order]
    return order, weights if _weighs(cfg) and (weights != 1).any() else None


def _factors(cfg: CfgNode, records: Sequence[Record]) -> torch.Tensor:
    """(N,) float, how often the training sampler draws each image in an epoch, on average."""
    factors = repetitions(cfg, records)
    if factors is not None:
        return factors
    logger.warning(
        "How often %s repeats an image is not known here; every image is passed once.",
        cfg.DATALOADER.SAMPLER_TRAIN,
    )
    return torch.ones(len(records))


def _loader(
    images: PassDataset, skip: int, num_workers: int, batch_size: int = 1
) -> torchdata.DataLoader:
    positions = range(comm.get_rank(), len(images), comm.get_world_size())[skip * batch_size :]
    return torchdata.DataLoader(
        images,
        batch_size=batch_size,
        sampler=positions,
        num_workers=num_workers,
        collate_fn=_as_it_is,
    )


def _batch_size(cfg: CfgNode) -> int:
    """Images of a step in a pass: detectors' differ in size, classifiers' are squares."""
    return cfg.MODEL.LOGN.IMAGE.TEST_BATCH if cfg.MODEL.META_ARCHITECTURE in MAPPERS else 1


def _as_it_is(batch: list[Record]) -> list[Record]:
    return batch
