"""Finite data loaders for passes over a data set: statistics passes and sweeps.

The images of a pass are numbered by their *position* in it. Process r of W takes the positions r, r
+ W, ..., so that each is visited exactly once. The random numbers of an image depend only on the
seed and its position, not on the number of processes or workers, nor on where an interrupted pass
resumed.
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
    get_detection_dataset_dicts,
)
from detectron2.utils import comm

from ..errors import UserError
from ..source import MAPPERS, Mapper, source_of
from .lvis_loader import lvis_mistakes_named
from .rng import seeded_rng
from .samplers import ClassAwareTrainingSampler, repetitions

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class PassDataset(torchdata.Dataset):
    """The images of a pass in order, each mapped with its own random numbers.

    Args:
        records (Sequence[dict]): N images in Detectron2's data set format.
        order (Tensor): (P,) int64, index of the record at each position; records may repeat.
        mapper (Callable): for example a DatasetMapper.
        seed (int): seed of the mapper's random numbers.
        needs_instances (bool): whether mapped images must have ground truth.
        weights (Tensor): (P,) weight of each position; None for weight 1.
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
        # Serialised: Python objects would be copied into every worker.
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
        # The standard errors group views by this id; custom sets may have none.
        mapped.setdefault("image_id", index)
        mapped["statistics_index"] = position
        if self._weights is not None:
            mapped["statistics_weight"] = float(self._weights[position])
        return mapped

    @property
    def in_order(self) -> bool:
        """Whether images keep the data set's order; the first ones are no random sample then."""
        return len(self) > 1 and bool((self._order.diff() >= 0).all())

    def digest(self) -> str:
        """A hash of the images and their order: 16 hexadecimal digits."""
        names = [str(record.get("file_name")) for record in self._records]
        content = "\n".join(names).encode() + self._order.numpy().tobytes()
        if self._weights is not None:
            # A resumed pass with other weights would mix two estimates, so they are part of the
            # digest.
            content += self._weights.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def build_statistics_loader(
    cfg: CfgNode,
    skip: int = 0,
    *,
    dataset: Sequence[Record] | None = None,
    mapper: Mapper | None = None,
) -> torchdata.DataLoader:
    """A finite loader over the training set with its annotations, for the statistics pass.

    Images come one at a time in a random order fixed by the seed, so that the first images of the
    pass are a random sample. ``cfg.MODEL.LOGN.COLLECT`` sets how often an image counts, the number
    of images, and whether they are augmented. An image that training repeats comes once, with its
    repeat factor as weight; with augmentation, or for moving averages, which have no weights, it
    comes repeatedly.

    Args:
        cfg (CfgNode): the training config.
        skip (int): number of batches that this process has already done.
        dataset (Sequence[dict]): replaces ``cfg.DATASETS.TRAIN``; already filtered.
        mapper (Callable): replaces Detectron2's; it must keep the annotations.

    Returns:
        DataLoader: this process's share, in lists of one mapped image (MODEL.LOGN.IMAGE.TEST_BATCH
        for image classifiers). Each image has "statistics_index", its position in the whole pass,
        and "statistics_weight" if weights differ from 1.

    Raises:
        ValueError: there are no images, or they have no annotations.
    """
    collect = cfg.MODEL.LOGN.COLLECT
    keeps_masks = _filtering_needs_masks(cfg)
    if dataset is None:
        dataset = training_images(cfg)
    order, weights = _pass_order(cfg, dataset)
    records = dataset
    if mapper is None and not keeps_masks:  # a user's own mapper may need everything
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


def build_evaluation_loader(cfg: CfgNode, dataset_name: str, skip: int = 0) -> torchdata.DataLoader:
    """A finite loader over an evaluation set that can start in the middle.

    Args:
        cfg (CfgNode): a Detectron2 config; the test-time mapper is made from it.
        dataset_name (str): a registered data set.
        skip (int): number of batches that this process has already done.

    Returns:
        DataLoader: this process's share, in lists of one mapped image.
    """
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:  # of this data set alone: the config has a file for each
        index = list(cfg.DATASETS.TEST).index(dataset_name)
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[index]]
    with lvis_mistakes_named([dataset_name]):
        records = get_detection_dataset_dicts(
            [dataset_name], filter_empty=False, proposal_files=files
        )
    # Evaluators take the ground truth from the json; workers need not copy it.
    records = [{k: v for k, v in record.items() if k != "annotations"} for record in records]
    mapper = source_of(cfg).mapper(is_train=False)
    images = PassDataset(records, torch.arange(len(records)), mapper)
    return _loader(images, skip, cfg.DATALOADER.NUM_WORKERS, _batch_size(cfg))


def build_class_aware_loader(cfg: CfgNode, images_per_class: int) -> torchdata.DataLoader:
    """A finite loader over augmented training images, equally many for every class.

    Classes take turns, in a new order each round. Images of classes with too few of them are
    repeated.

    Args:
        cfg (CfgNode): as used for training.
        images_per_class (int): number on each process.

    Returns:
        DataLoader: of lists of one mapped image, this process's share, the same number on all.
    """
    records = training_images(cfg)
    sampler = ClassAwareTrainingSampler.from_config(cfg, records)
    # The sampler's stream is endless; the product is the length of the pass.
    shape = (images_per_class, comm.get_world_size(), sampler.num_classes)
    drawn = itertools.islice(sampler.stream(), math.prod(shape))
    # Process r gets the positions r, r + W, ..., which are whole rounds of all classes.
    order = torch.tensor(list(drawn), dtype=torch.int64).reshape(shape).transpose(1, 2).flatten()
    mapper = source_of(cfg).mapper(is_train=True)
    images = PassDataset(records, order, mapper, seed=max(cfg.SEED, 0))
    # Never resumed: a resumed training fills its memory again.
    return _loader(images, 0, cfg.DATALOADER.NUM_WORKERS)


def training_images(cfg: CfgNode) -> list[Record]:
    """The images of training: ``cfg.DATASETS.TRAIN``, with training's filters.

    Raises:
        ValueError: no images are left.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError(
            "DATASETS.TRAIN is empty, so there are no training images. Name the data set that the "
            "model is trained on."
        )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    try:
        with lvis_mistakes_named(names):
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
            f"with only crowds (iscrowd 1). {_count_crowds(names)}"
        ) from error


def _count_crowds(names: Sequence[str]) -> str:
    """A sentence with the number of crowds, which training leaves out."""
    objects = [o for n in names for r in DatasetCatalog.get(n) for o in r.get("annotations", ())]
    return f"{sum(o.get('iscrowd', 0) != 0 for o in objects)} of {len(objects)} objects are crowds."


def map_record(mapper: Mapper, record: Record) -> Record | None:
    """Load and map the image of a record.

    Raises:
        ValueError: the image can't be decoded; PIL's own message does not name the file.
    """
    try:
        return mapper(record)
    except FileNotFoundError:  # names the file
        raise
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"The image {record.get('file_name')} can't be read ({error}). Repair the file or "
            "remove it from the json; `logn data check` checks all of them."
        ) from error


def statistics_mapper(cfg: CfgNode) -> Mapper:
    """The training mapper, with the test-time resize unless COLLECT.AUGMENT is set.

    Boxes and classes are as in training. Masks are dropped unless they affect which objects are
    kept, and key points always, because nothing is trained here.
    """
    source = source_of(cfg)
    if cfg.MODEL.META_ARCHITECTURE in MAPPERS:
        return source.mapper(is_train=cfg.MODEL.LOGN.COLLECT.AUGMENT)
    kind, arguments = source.mapper_call(is_train=True)
    if not cfg.MODEL.LOGN.COLLECT.AUGMENT:
        arguments["augmentations"] = source.mapper_call(is_train=False)[1]["augmentations"]
        arguments["recompute_boxes"] = False
    arguments["use_instance_mask"] = _filtering_needs_masks(cfg)
    arguments["use_keypoint"] = False
    return kind(**arguments)


def _filtering_needs_masks(cfg: CfgNode) -> bool:
    """Whether the mapper may drop or change an object because of its mask.

    It does if a crop removes the mask, or if the resize removes the last pixel of a bitmap.
    Polygons survive every resize and flip.
    """
    crops = cfg.INPUT.CROP.ENABLED and cfg.MODEL.LOGN.COLLECT.AUGMENT
    return cfg.MODEL.MASK_ON and (crops or cfg.INPUT.MASK_FORMAT != "polygon")


def _without_masks(record: Record, drop_empty: bool) -> Record:
    """A copy of the record without the fields that are slow to copy and decode.

    With masks on, Detectron2's mapper drops objects with an empty list of polygons; our mapper sees
    no masks, so ``drop_empty`` drops them.
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
    """Whether a weight replaces repetitions, which is exact if all views are the same picture."""
    collect = cfg.MODEL.LOGN.COLLECT
    return collect.REPEAT and not collect.AUGMENT and collect.ESTIMATOR == "exact"


def _pass_order(
    cfg: CfgNode, records: Sequence[Record]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Record index at each position, (P,) int64, and weights, (P,), None if all are 1."""
    collect = cfg.MODEL.LOGN.COLLECT
    if not len(records):
        raise UserError(
            f"There are no images in {', '.join(cfg.DATASETS.TRAIN)} for the statistics. Check "
            "DATASETS.TRAIN and DATALOADER.FILTER_EMPTY_ANNOTATIONS."
        )
    generator = torch.Generator().manual_seed(collect.SEED % 2**63)
    order = torch.arange(len(records))
    factors = _factors(cfg, records) if collect.REPEAT else torch.ones(len(records))
    if _weighs(cfg):
        order = order[factors > 0]  # class-aware sampling never draws images without objects
    elif collect.REPEAT:
        # Stochastic rounding, as the sampler applies it in each epoch.
        whole = factors.trunc()
        copies = whole + (torch.rand(len(factors), generator=generator) < factors - whole)
        order = torch.repeat_interleave(order, copies.long())
    order = order[torch.randperm(len(order), generator=generator)]
    # Cut after shuffling, so that the limit takes a random sample.
    if collect.MAX_IMAGES > 0:
        order = order[: collect.MAX_IMAGES]
    weights = factors.double()[order]
    return order, weights if _weighs(cfg) and (weights != 1).any() else None


def _factors(cfg: CfgNode, records: Sequence[Record]) -> torch.Tensor:
    """Expected number of draws of each image per epoch by the training sampler, (N,) float."""
    factors = repetitions(cfg, records)
    if factors is not None:
        return factors
    logger.warning(
        "The repeat factors of %s are unknown; every image is visited once.",
        cfg.DATALOADER.SAMPLER_TRAIN,
    )
    return torch.ones(len(records))


def _loader(
    images: PassDataset, skip: int, num_workers: int, batch_size: int = 1
) -> torchdata.DataLoader:
    # A range as sampler: a resumed pass starts behind `skip` batches without loading them.
    positions = range(comm.get_rank(), len(images), comm.get_world_size())[skip * batch_size :]
    return torchdata.DataLoader(
        images,
        batch_size=batch_size,
        sampler=positions,
        num_workers=num_workers,
        collate_fn=_as_it_is,
    )


def _batch_size(cfg: CfgNode) -> int:
    """Images per batch of a pass: 1 for detectors, whose images differ in size."""
    return cfg.MODEL.LOGN.IMAGE.TEST_BATCH if cfg.MODEL.META_ARCHITECTURE in MAPPERS else 1


def _as_it_is(batch: list[Record]) -> list[Record]:
    return batch
