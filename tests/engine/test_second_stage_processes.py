"""Two processes train a second stage: frozen parts stay, the others are equal on both."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor

from logn_d2 import add_logn_config
from logn_d2.engine import Trainer, launch
from logn_d2.glyphs import register_glyphs
from logn_d2.modeling.second_stages import SECOND_STAGES

from ..processes import use_forks
from ..small_backbone import GLYPHS_CONFIG

# cRT and LWS, and LOCE's, which trains most.
STAGES = ("crt", "lws", "heads")
STEPS = 2
SMALL = (
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "SEED", 3),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.1),
    *("SOLVER.WARMUP_ITERS", 0, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64),
    *("MODEL.LOGN.COLLECT.ENABLED", False, "DATASETS.TEST", ()),
)


def train_stages(root: str, cfg: CfgNode) -> None:
    """Each second stage from the same first one; each process saves what it has in the end."""
    torch.set_num_threads(1)
    register_glyphs(root)
    for name in STAGES:
        # As default_setup: another seed for each process, and so other initial weights and images.
        torch.manual_seed(cfg.SEED + comm.get_rank())
        cfg.MODEL.LOGN.SECOND_STAGE = name
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        states = {"before": copied(trainer)}
        with EventStorage():
            for _ in range(STEPS):
                trainer.run_step()
        states["after"] = copied(trainer)
        torch.save(states, f"{cfg.OUTPUT_DIR}/{name}{comm.get_rank()}.pth")


def copied(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.model.state_dict()
    return {name.removeprefix("module."): value.clone() for name, value in state.items()}


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    """The first stage's weights, and the folder of what both processes have trained."""
    folder = tmp_path_factory.mktemp("second_stages")
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(str(GLYPHS_CONFIG))
    cfg.merge_from_list([*SMALL, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder)])
    register_glyphs(tiny_root)
    first = Trainer.build_model(cfg).state_dict()
    cfg.MODEL.WEIGHTS = str(folder / "first.pth")
    torch.save({"model": first}, cfg.MODEL.WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        use_forks(patch)
        launch(train_stages, 2, device="cpu", args=(str(tiny_root), cfg))
    return first, folder


def states(folder: Path, name: str) -> list[dict[str, dict[str, Tensor]]]:
    return [torch.load(folder / f"{name}{rank}.pth", weights_only=True) for rank in range(2)]


def is_trained(name: str, key: str) -> bool:
    return SECOND_STAGES[name].trains(key)


@pytest.mark.parametrize("name", STAGES)
def test_what_is_frozen_is_the_first_stages_on_both(name, run):
    first, folder = run
    for each in states(folder, name):
        frozen = [key for key in first if not is_trained(name, key)]
        assert len(frozen) > 20
        assert [key for key in frozen if not torch.equal(each["after"][key], first[key])] == []


@pytest.mark.parametrize("name", STAGES)
def test_what_is_trained_is_the_same_on_both(name, run):
    _, folder = run
    left, right = states(folder, name)
    trained = [key for key in left["after"] if is_trained(name, key)]
    for when in ("before", "after"):
        assert all(torch.equal(left[when][key], right[when][key]) for key in trained)
    assert any(not torch.equal(left["before"][key], left["after"][key]) for key in trained)
