"""Training samplers in addition to Detectron2's, chosen by DATALOADER.SAMPLER_TRAIN as well.

Each yields an endless stream of image indices; process r of W takes the positions r, r + W, ... of
one stream, which therefore does not depend on the number of processes.

Shapes: N images, K classes.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import UserError
from ..source import source_of

Record = dict[str, Any]


class CeilRepeatFactorTrainingSampler(RepeatFactorTrainingSampler):
    """Repeat factor sampling with factors rounded up, like MMDetection's ClassBalancedDataset.

    Detectron2 rounds at random, with the factor as expectation. Rounding up doubles every image
    whose factor is slightly above 1, and so oversamples more: the published figures of Seesaw, EQL
    v2 and LogN use it.

    Args:
        repeat_factors (Tensor): (N,) float.
        shuffle (bool): whether each epoch is shuffled.
        seed (int): the same on all processes; None draws one.

    Example:
        >>> sampler = CeilRepeatFactorTrainingSampler(torch.tensor([1.0, 1.2]), seed=0)
        >>> sorted(itertools.islice(sampler, 3))
        [0, 1, 1]
    """

    def __init__(
        self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(repeat_factors.ceil(), shuffle=shuffle, seed=seed)


class ClassAwareTrainingSampler(Sampler):
    """Class-balanced sampling: classes take turns, and so do the images of each class.

    All classes with images are drawn equally often; an image of several classes is in several
    lists. Decoupled training (Kang et al., ICLR 2020) retrains classifiers with it. The classes and
    each class's images are reshuffled whenever they are used up.

    Args:
        images_of_class (Sequence[Sequence[int]]): K lists of image indices; empty lists are left
            out.
        seed (int): the same on all processes; None draws one.

    Raises:
        ValueError: no class has an image.

    Example:
        >>> sampler = ClassAwareTrainingSampler([[0, 1, 2, 3], [4]], seed=0)
        >>> list(itertools.islice(sampler, 8)).count(4)
        4
    """

    def __init__(
        self, images_of_class: Sequence[Sequence[int]], *, seed: int | None = None
    ) -> None:
        self._images = [torch.as_tensor(list(images)) for images in images_of_class if len(images)]
        if not self._images:
            raise UserError(
                "No class has an image, so there is nothing to draw. Check the annotations of "
                "DATASETS.TRAIN."
            )
        self._seed = int(comm.shared_random_seed() if seed is None else seed)

    @classmethod
    def from_records(
        cls, records: Sequence[Record], *, seed: int | None = None
    ) -> ClassAwareTrainingSampler:
        """Build a sampler of annotated images.

        Args:
            records (Sequence[dict]): N images in Detectron2's data set format. Crowds do not count.
            seed (int): see the class.
        """
        images: dict[int, list[int]] = defaultdict(list)
        for index, record in enumerate(records):
            for category in sorted(_classes(record)):
                images[category].append(index)
        # In the order of classes, so that one seed gives one stream.
        return cls([images[category] for category in sorted(images)], seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, records: Sequence[Record]) -> ClassAwareTrainingSampler:
        """`from_records` with the seed of a config."""
        return cls.from_records(records, seed=_seed(cfg))

    @property
    def num_classes(self) -> int:
        """Number of classes that take turns."""
        return len(self._images)

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.stream(), comm.get_rank(), None, comm.get_world_size())

    def stream(self) -> Iterator[int]:
        """The stream shared by all processes; every ``num_classes`` draws have each class once."""
        generator = torch.Generator().manual_seed(self._seed)
        images = [_endless_shuffle(each, generator) for each in self._images]
        for index in _endless_shuffle(torch.arange(len(images)), generator):
            yield next(images[index])


def repeat_factors(cfg: CfgNode, records: Sequence[Record]) -> Tensor:
    """Expected number of draws of each image per epoch under repeat factor sampling, (N,) float32.

    Args:
        cfg (CfgNode): DATALOADER.REPEAT_THRESHOLD, and REPEAT_SQRT if Detectron2 has it.
        records (Sequence[dict]): N images in Detectron2's data set format.
    """
    # Releases after 0.6 can repeat by the frequency itself instead of its square root.
    options = {}
    if "REPEAT_SQRT" in cfg.DATALOADER:
        options["sqrt"] = cfg.DATALOADER.REPEAT_SQRT
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, **options
    )


def described_sampler(cfg: CfgNode) -> str:
    """The training sampler with all options that affect how often it draws an image.

    Statistics do not follow a sampler unknown to `repetitions`, so the plain sampler is named then.

    Args:
        cfg (CfgNode): DATALOADER.SAMPLER_TRAIN, REPEAT_THRESHOLD, and REPEAT_SQRT where Detectron2
            has it.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name in ("RepeatFactorTrainingSampler", "CeilRepeatFactorTrainingSampler"):
        root = "" if cfg.DATALOADER.get("REPEAT_SQRT", True) else ", sqrt=False"
        return f"{name}({cfg.DATALOADER.REPEAT_THRESHOLD:g}{root})"
    return name if name == "ClassAwareTrainingSampler" else "TrainingSampler"


def repetitions(cfg: CfgNode, records: Sequence[Record]) -> Tensor | None:
    """Expected number of draws of each image per epoch by the training sampler.

    Args:
        cfg (CfgNode): DATALOADER.SAMPLER_TRAIN.
        records (Sequence[dict]): N images in Detectron2's data set format.

    Returns:
        Tensor: (N,) float; None for unknown samplers. Class-aware sampling has no epochs, so N
        draws count as one.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler == "TrainingSampler":
        return torch.ones(len(records))  # a permutation in each epoch
    if sampler == "RepeatFactorTrainingSampler":
        return repeat_factors(cfg, records)
    if sampler == "CeilRepeatFactorTrainingSampler":
        return repeat_factors(cfg, records).ceil()
    if sampler == "ClassAwareTrainingSampler":
        classes = [_classes(record) for record in records]
        images = Counter(itertools.chain.from_iterable(classes))
        # Each class is drawn with probability 1 / K, and then each of its images with equal
        # probability.
        share = [sum(1 / images[category] for category in each) for each in classes]
        return torch.tensor(share) * (len(records) / max(len(images), 1))
    return None


def build_training_sampler(cfg: CfgNode, records: Sequence[Record]) -> Sampler | None:
    """Build the sampler named by DATALOADER.SAMPLER_TRAIN.

    Args:
        cfg (CfgNode): the config.
        records (Sequence[dict]): the training images, filtered already.

    Returns:
        Sampler: for ``build_detection_train_loader(sampler=...)``; None where Detectron2 builds it.
    """
    build = TRAINING_SAMPLERS.get(cfg.DATALOADER.SAMPLER_TRAIN)
    return source_of(cfg).sampler() if build is None else build(cfg, records)


def _build_ceil(cfg: CfgNode, records: Sequence[Record]) -> Sampler:
    return CeilRepeatFactorTrainingSampler(repeat_factors(cfg, records), seed=_seed(cfg))


def _seed(cfg: CfgNode) -> int | None:
    """As releases of Detectron2 after 0.6 seed their samplers."""
    return cfg.SEED if cfg.SEED >= 0 else None


TRAINING_SAMPLERS: dict[str, Callable[[CfgNode, Sequence[Record]], Sampler]] = {
    "CeilRepeatFactorTrainingSampler": _build_ceil,
    "ClassAwareTrainingSampler": ClassAwareTrainingSampler.from_config,
}
"""Value of DATALOADER.SAMPLER_TRAIN -> builder of the sampler; Detectron2's own are not listed."""


def _classes(record: Record) -> set[int]:
    return {a["category_id"] for a in record.get("annotations", ()) if not a.get("iscrowd", 0)}


def _endless_shuffle(values: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from values[torch.randperm(len(values), generator=generator)].tolist()
