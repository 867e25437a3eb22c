"""Second stages train the documented parts and leave everything else unchanged."""

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils.events import EventStorage

from logn_d2.engine import Trainer, check_training
from logn_d2.engine.second_stage import check_second_stage
from logn_d2.modeling import LogNROIHeads
from logn_d2.modeling.second_stages import SECOND_STAGES, get_second_stage

ONLY = {
    "crt": {"cls_score"},
    "classifier": {"cls_score"},
    "lws": {"class_scale"},
    "heads": {"cls_score", "bbox_pred", "proposal_generator", "mask_head"},
}


@pytest.fixture
def first(cfg):
    """The config, with the checkpoint of a first stage as its weights."""
    cfg.SEED = 1
    cfg.DATASETS.TEST = ()
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    model = Trainer.build_model(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("cls_score.bias"):
            parameter.data.fill_(0.25)
    path = f"{cfg.OUTPUT_DIR}/first.pth"
    torch.save({"model": model.state_dict()}, path)
    cfg.MODEL.WEIGHTS = path
    return cfg


def state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def trained(cfg, steps=2):
    """State before and after some steps."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = state(trainer)
    with EventStorage():
        for _ in range(steps):
            trainer.run_step()
    return before, state(trainer)


@pytest.mark.parametrize(
    ("name", "classifier"), [*((name, "linear") for name in SECOND_STAGES), ("lws", "cosine")]
)
def test_only_trained_parts_change(name, classifier, first):
    first.MODEL.LOGN.SECOND_STAGE, first.MODEL.LOGN.CLASSIFIER = name, classifier
    first.SOLVER.BASE_LR, first.SOLVER.WARMUP_ITERS = 0.1, 0
    before, after = trained(first)
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed
    strangers = {key for key in changed if not any(part in key for part in ONLY[name])}
    assert not strangers  # running means of batch norm among them
    for part in ONLY[name] - (set() if first.MODEL.MASK_ON else {"mask_head"}):
        assert any(part in key for key in changed), part


def test_crt_starts_from_a_new_classifier_and_the_others_from_the_old_one(first):
    weights = torch.load(first.MODEL.WEIGHTS, weights_only=True)["model"]
    for name in SECOND_STAGES:
        first.MODEL.LOGN.SECOND_STAGE = name
        before, _ = trained(first, steps=0)
        for key, value in weights.items():
            renewed = name == "crt" and "cls_score" in key
            assert torch.equal(before[key], value) != renewed, key
    (bias,) = (before[key] for key in before if key.endswith("cls_score.bias"))
    assert set(bias.tolist()) == {0.25}


def test_resumed_crt_keeps_the_classifier_that_it_has_trained(first):
    first.MODEL.LOGN.SECOND_STAGE = "crt"
    trainer = Trainer(first)
    trainer.resume_or_load(resume=False)
    for name, parameter in trainer.model.named_parameters():
        if "cls_score" in name:
            parameter.data.fill_(0.125)
    trainer.checkpointer.save("model_0000009")
    resumed = Trainer(first)
    resumed.resume_or_load(resume=True)
    kept = {name: value for name, value in state(resumed).items() if "cls_score" in name}
    assert kept and all((value == 0.125).all() for value in kept.values())


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_lws_leaves_the_background_scale_alone(classifier, first):
    first.MODEL.LOGN.SECOND_STAGE, first.MODEL.LOGN.CLASSIFIER = "lws", classifier
    first.SOLVER.WEIGHT_DECAY, first.SOLVER.BASE_LR, first.SOLVER.WARMUP_ITERS = 0.1, 1.0, 0
    _, after = trained(first, steps=3)
    (scale,) = (after[key] for key in after if key.endswith("class_scale"))
    assert scale[-1] == 1.0
    assert (scale[:-1] != 1.0).any()


def test_frozen_batch_norm_survives_a_return_to_training_mode(first):
    first.MODEL.LOGN.SECOND_STAGE = "crt"
    trainer = Trainer(first)
    trainer.model.eval()
    trainer.model.train()  # as after an evaluation in between
    before = state(trainer)
    with EventStorage():
        trainer.run_step()
    means = [key for key in before if "running_mean" in key]
    assert means and all(torch.equal(before[key], state(trainer)[key]) for key in means)


def test_another_loss_has_another_classifier_in_its_second_stage(first):
    first.MODEL.LOGN.SECOND_STAGE = "crt"
    first.MODEL.LOGN.LOSS = "bags"
    before, after = trained(first, steps=1)
    (key,) = (key for key in after if key.endswith("cls_score.weight"))
    assert len(after[key]) == 12 + 2 + 4
    assert not torch.equal(before[key], after[key])


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_weights_that_are_not_of_a_first_stage_are_refused(name, first):
    weights = torch.load(first.MODEL.WEIGHTS, weights_only=True)["model"]
    backbone = {key: value for key, value in weights.items() if key.startswith("backbone")}
    torch.save({"model": backbone}, first.MODEL.WEIGHTS)
    first.MODEL.LOGN.SECOND_STAGE = name
    trainer = Trainer(first)
    with pytest.raises(ValueError, match="not in MODEL.WEIGHTS.*Give the first stage's"):
        trainer.resume_or_load(resume=False)


def test_crt_drops_the_gain_of_a_folded_first_stage(first):
    first.MODEL.LOGN.SECOND_STAGE, first.MODEL.LOGN.CLASSIFIER = "crt", "cosine"
    weights = torch.load(first.MODEL.WEIGHTS, weights_only=True)["model"]
    gain = {"roi_heads.box_predictor.cls_score.gain": torch.full((13,), 3.0)}
    torch.save({"model": {**weights, **gain}}, first.MODEL.WEIGHTS)
    before, _ = trained(first, steps=0)
    assert not [key for key in before if key.endswith("gain")]


def test_a_new_training_counts_its_own_training_set(first):
    first.MODEL.LOGN.LOSS = "balanced_softmax(count=instance)"
    trainer = Trainer(first)
    counts = trainer.model.roi_heads.box_predictor.loss.counts
    expected = counts.of("instance").clone()
    counts.instance_count += 7
    trainer.checkpointer.save("model_final")
    first.MODEL.WEIGHTS = f"{first.OUTPUT_DIR}/model_final.pth"
    for resume, added in ((False, 0), (True, 7)):
        trainer = Trainer(first)
        trainer.resume_or_load(resume=resume)
        found = trainer.model.roi_heads.box_predictor.loss.counts.of("instance")
        assert torch.equal(found, expected + added)


def test_a_subclass_of_our_heads_can_learn_scales(first, monkeypatch):
    class OwnHeads(LogNROIHeads):
        pass

    monkeypatch.setattr(ROI_HEADS_REGISTRY, "_obj_map", {**ROI_HEADS_REGISTRY._obj_map})
    ROI_HEADS_REGISTRY.register(OwnHeads)
    first.MODEL.LOGN.SECOND_STAGE, first.MODEL.ROI_HEADS.NAME = "lws", "OwnHeads"
    check_second_stage(first)


def test_mistakes_are_found_before_training(first):
    with pytest.raises(KeyError, match="Unknown MODEL.LOGN.SECOND_STAGE 'cRT'. Known: crt, .*lws"):
        get_second_stage("cRT")
    assert get_second_stage("") is None
    check_second_stage(first)
    first.MODEL.LOGN.SECOND_STAGE = "lws"
    check_second_stage(first)
    first.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="needs our RoI heads"):
        check_second_stage(first)
    first.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        check_second_stage(first)


def test_a_loss_with_a_wrong_value_is_found_before_training(first):
    check_training(first, 1)
    first.MODEL.LOGN.LOSS = "seesaw(eps=0)"
    with pytest.raises(ValueError, match="eps is 0"):
        check_training(first, 1)
