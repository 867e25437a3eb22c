"""lvis_v1_mask_rcnn_R_50_FPN_rfs.yaml as a LazyConfig: the differences from Detectron2's COCO
model.

For `logn train --config-file mask_rcnn_R_50_FPN_lvis_v1_logn.py` and all other commands, or for
Detectron2's tools/lazyconfig_train_net.py and `logn_d2.attach`.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler

from logn_d2.evaluators import LVISFormEvaluator
from logn_d2.modeling import CosineMaskHead, LogNFastRCNNOutputLayers

_coco = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
dataloader, lr_multiplier, model = _coco.dataloader, _coco.lr_multiplier, _coco.model
optimizer, train = _coco.optimizer, _coco.train

model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor._target_ = LogNFastRCNNOutputLayers
model.roi_heads.box_predictor.classifier = "cosine"
model.roi_heads.box_predictor.temperature = 20.0
model.roi_heads.box_predictor.test_score_thresh = 0.0001
model.roi_heads.box_predictor.test_topk_per_image = 300
model.roi_heads.mask_head._target_ = CosineMaskHead
model.roi_heads.mask_head.temperature = 20.0

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(LVISFormEvaluator)(dataset_name="${..test.dataset.names}")

# 24 epochs of 99,388 images, drops after 16 and 22.
train.max_iter = 149082
lr_multiplier.scheduler.milestones = [99388, 136658, 149082]
lr_multiplier.warmup_length = 1000 / 149082
train.output_dir = "output/mask_rcnn_R_50_FPN_lvis_v1_logn"
