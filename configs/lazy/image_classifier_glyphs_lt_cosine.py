"""classification/glyphs_lt_cosine.yaml as a LazyConfig: an image classifier without `cfg`.

For `logn train --config-file image_classifier_glyphs_lt_cosine.py` and all other commands, or for
Detectron2's tools/lazyconfig_train_net.py and `logn_d2.attach`.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import build_detection_test_loader, build_detection_train_loader
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from torchvision.transforms import v2

from logn_d2.classification import (
    ClassifierHead,
    ImageClassifier,
    ImageMapper,
    MLPBackbone,
    register_image_sets,
)
from logn_d2.classification.logits import ImageEvaluator

register_image_sets()

model = L(ImageClassifier)(
    backbone=L(MLPBackbone)(channels=1, size=16, hidden=[128, 64]),
    head=L(ClassifierHead)(
        in_features=64, num_classes=60, classifier="cosine", temperature=20.0, loss="cross_entropy"
    ),
    pixel_mean=[110.0],
    pixel_std=[50.0],
)

_mapper = L(ImageMapper)(image_format="L", transform=L(v2.Resize)(size=[16, 16]))
dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="glyphs_lt_train"),
        mapper=_mapper,
        total_batch_size=64,
        num_workers=0,
        aspect_ratio_grouping=False,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="glyphs_lt_test", filter_empty=False),
        mapper=_mapper,
        num_workers=0,
    ),
    "evaluator": L(ImageEvaluator)(),
}

optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.05
optimizer.weight_decay = 0.0005

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.0,
    warmup_factor=1.0,
)

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = ""
train.max_iter = 1845  # 30 epochs of 3,931 images
train.output_dir = "output/glyphs_lt_cosine"
