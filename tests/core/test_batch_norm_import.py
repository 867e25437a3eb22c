"""Statistics from a checkpoint of the released code, against the layer itself and by hand."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from logn_d2.core import (
    EmaLogitMoments,
    LogitStatistics,
    StatisticsError,
    classifier_fingerprint,
    import_batch_norm,
    load_batch_norm,
    logn,
)

# The worked example of two batches, four columns, momentum 0.1.
BATCH_A = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
BATCH_B = torch.tensor([[1.0, -1, -3, 2], [0, -2, -4, 5], [-2, -3, -5, 6]])
NAMES = ("frequent", "common", "rare")


def checkpoint(stages=(None,), momentum=0.1, batches=(BATCH_A, BATCH_B), name="bn"):
    """What MMDetection saves, with normalisations elsewhere that are none of logits."""
    state = OrderedDict()
    state["backbone.bn1.running_mean"] = torch.zeros(4)
    for index in stages:
        head = "roi_head.bbox_head" + ("" if index is None else f".{index}")
        norm = nn.BatchNorm1d(4, momentum=momentum, affine=False)
        for batch in batches:
            norm(batch + (index or 0))
        generator = torch.Generator().manual_seed(index or 0)
        state[f"{head}.fc_cls.weight"] = torch.randn(4, 8, generator=generator)
        state[f"{head}.fc_cls.bias"] = torch.randn(4, generator=generator)
        state[f"{head}.shared_convs.0.bn.running_mean"] = torch.ones(4)
        for key, tensor in norm.state_dict().items():
            state[f"{head}.{name}.{key}"] = tensor.clone()
    return state


def close(found, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["bn", "logit_norm"])
def test_worked_example_as_published(name):
    statistics = import_batch_norm(checkpoint(name=name), NAMES, momentum=0.1)
    (stage,) = statistics.stages
    close(stage.mean, [0.034167, -0.1775, -0.535, 0.613333])
    close(stage.var, [1.324583, 0.92125, 0.955, 1.423333])
    assert (statistics.estimator, statistics.momentum) == ("ema", 0.1)
    assert (statistics.class_names, statistics.background) == (NAMES, "last")
    assert statistics.population == "sampled" and stage.moments is None


def test_worked_example_without_the_start_values():
    statistics = import_batch_norm(checkpoint(), NAMES, momentum=0.1, debias=True)
    (stage,) = statistics.stages
    close(stage.mean, [0.179825, -0.934211, -2.815789, 3.228070])
    close(stage.var, [2.708333, 0.585526, 0.763158, 3.228070])
    assert statistics.estimator == "ema_debiased"


def test_equals_our_own_moving_averages():
    batches = torch.randn(30, 16, 4, generator=torch.Generator().manual_seed(0)) * 3 - 2
    ours = EmaLogitMoments(4, momentum=0.01)
    for batch in batches:
        ours.update(batch)
    stage = import_batch_norm(checkpoint(momentum=0.01, batches=batches), momentum=0.01).stages[0]
    close(stage.mean, ours.mean)
    close(stage.var, ours.var)


def test_counts_follow_from_the_settings_of_the_training():
    statistics = import_batch_norm(checkpoint(), images_per_batch=2, rois_per_image=100)
    assert (statistics.num_images, statistics.num_rois) == (4, 400)
    assert statistics.stages[0].count.tolist() == [400] * 4
    assert statistics.provenance["batches"] == [2]


def test_stages_of_a_cascade_come_in_order():
    """In a state dict they may not: "10" sorts before "2"."""
    state = checkpoint(stages=(2, 0, 1))
    statistics = import_batch_norm(state, momentum=0.1)
    means = [float(stage.mean[0]) for stage in statistics.stages]
    assert means == sorted(means) and len(set(means)) == 3
    for index, stage in enumerate(statistics.stages):
        head = f"roi_head.bbox_head.{index}.fc_cls"
        expected = classifier_fingerprint(state[f"{head}.weight"], state[f"{head}.bias"])
        assert torch.equal(stage.fingerprint, expected)


def test_background_mean_that_reading_set_to_zero_is_unknown():
    """Evaluation with the released code writes 0 into the buffer of the background's mean."""
    state = checkpoint()
    state["roi_head.bbox_head.bn.running_mean"][-1] = 0
    (stage,) = import_batch_norm(state, momentum=0.1).stages
    assert stage.count.tolist() == [1024, 1024, 1024, 0]
    with pytest.raises(ValueError, match="have no background logits"):
        logn(stage, beta="background")
    untouched = import_batch_norm(checkpoint(), momentum=0.1).stages[0]
    z = torch.tensor([[2.0, 0.5, -1.0, 1.0]])
    assert torch.equal(logn(stage)(z), logn(untouched)(z))


def test_calibrated_logits_are_those_of_the_released_formula():
    state = checkpoint()
    mean, var = (state[f"roi_head.bbox_head.bn.running_{name}"] for name in ("mean", "var"))
    z = torch.tensor([[2.0, 0.5, -1.0, 1.0]])
    expected = (z - mean + mean[:3].min()) / var.sqrt()
    expected[:, 3] = z[:, 3]
    found = logn(import_batch_norm(state, momentum=0.1).stages[0])(z)
    torch.testing.assert_close(found, expected)


def test_the_state_dict_is_not_changed():
    state, before = checkpoint(), checkpoint()
    import_batch_norm(state, debias=True).stages[0].mean.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_data_parallel_names_are_known():
    state = {f"module.{name}": tensor for name, tensor in checkpoint().items()}
    assert len(import_batch_norm(state).stages) == 1


def test_classifier_that_is_not_there_leaves_no_fingerprint():
    state = {name: tensor for name, tensor in checkpoint().items() if "fc_cls" not in name}
    assert import_batch_norm(state).stages[0].fingerprint is None


def test_missing_parts_are_named():
    state = {name: tensor for name, tensor in checkpoint().items() if "bbox_head" not in name}
    with pytest.raises(StatisticsError, match="it has backbone.bn1.running_mean"):
        import_batch_norm(state)
    with pytest.raises(StatisticsError, match="no running_mean at all"):
        import_batch_norm({})
    with pytest.raises(StatisticsError, match=r"stages \[0, 2\] only"):
        import_batch_norm(checkpoint(stages=(0, 2)))
    both = {f"teacher.{name}": tensor for name, tensor in checkpoint().items()}
    with pytest.raises(StatisticsError, match="several box heads"):
        import_batch_norm({**both, **checkpoint()})
    with pytest.raises(StatisticsError, match="has seen no batch"):
        import_batch_norm(checkpoint(batches=()))
    with pytest.raises(StatisticsError, match="of 3 classes, but 2 class names"):
        import_batch_norm(checkpoint(), ["a", "b"])
    with pytest.raises(ValueError, match="momentum is 0"):
        import_batch_norm(checkpoint(), momentum=0.0)


@pytest.mark.parametrize("stages", [(None,), (0, 1, 2)])
def test_checkpoint_files_are_read_and_kept_as_statistics_files(tmp_path, stages):
    path, output = tmp_path / "epoch_1.pth", tmp_path / "stats.safetensors"
    meta = {"CLASSES": NAMES, "epoch": 1, "config": "model = dict()"}
    torch.save({"meta": meta, "state_dict": checkpoint(stages), "optimizer": {}}, path)
    load_batch_norm(path, momentum=0.1).save(output)
    loaded = LogitStatistics.load(output)
    assert loaded.class_names == NAMES and len(loaded.stages) == len(stages)
    close(loaded.stages[0].mean, [0.034167, -0.1775, -0.535, 0.613333])
    assert load_batch_norm(path, ["a", "b", "c"]).class_names == ("a", "b", "c")


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    path = tmp_path / "epoch_1.pth"
    torch.save({"meta": Harmful(), "state_dict": checkpoint()}, path)
    with pytest.raises(StatisticsError, match="can't be read safely"):
        load_batch_norm(path)
    assert "unpickled" not in capsys.readouterr().out


def test_other_files_are_errors(tmp_path):
    path = tmp_path / "epoch_1.pth"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_batch_norm(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(StatisticsError, match="can't be read safely"):
        load_batch_norm(path)
    torch.save([1, 2], path)
    with pytest.raises(StatisticsError, match="holds a list"):
        load_batch_norm(path)
