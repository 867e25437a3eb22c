"""Properties of every loss: gradients, empty batches, state, types, and unchanged inputs."""

import copy

import pytest
import torch
from torch.nn import functional as F

from logn_d2.core import LOSS_REGISTRY, ClassCounts, build_loss
from logn_d2.core.losses import SoftmaxLoss, parse_loss

from .small_batch import COUNTS, NAMES, NUM_CLASSES, STATEFUL, batch, make

# Where the gradient is that of the loss as it stands, all factors held fixed: not Seesaw's q, whose
# factor follows the logits.
SMOOTH = [name for name in NAMES if name not in ("seesaw", "federated", "bags")]
SMOOTH += ["seesaw(q=0)", "federated(classes=4)", "bags(others_ratio=100)"]
EVERY = [*NAMES, "focal(gamma=0.5)", "federated(classes=2)", "inverse_logn(columns=all)"]


@pytest.mark.parametrize("text", SMOOTH)
def test_gradient_is_the_losss(text):
    loss = make(text)
    logits, targets, objects = batch(loss, 6)
    loss(logits, targets, objects)  # a state that is not the first
    loss.eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, objects), logits)


def test_seesaws_factors_have_no_gradient():
    loss = make("seesaw").eval()
    logits, targets, _ = batch(loss, 6)
    (gradient,) = torch.autograd.grad(loss(logits, targets), logits)
    classes = logits.detach()[:, :NUM_CLASSES]
    foreground = targets < NUM_CLASSES
    with torch.no_grad():
        raised = classes[foreground] + loss._log_weights(classes[foreground], targets[foreground])
    expected = raised.softmax(dim=1) - F.one_hot(targets[foreground], NUM_CLASSES)
    torch.testing.assert_close(gradient[foreground, :NUM_CLASSES], expected / len(targets))


@pytest.mark.parametrize("text", EVERY)
def test_an_empty_batch_costs_nothing_and_has_a_gradient(text):
    loss = make(text)
    before = copy.deepcopy(loss.state_dict())
    logits, targets, objects = batch(loss, 0)
    value = loss(logits, targets, objects)
    assert value.item() == 0 and value.dim() == 0
    value.backward()
    assert logits.grad.shape == logits.shape
    assert loss.scores(logits.detach()).shape == (0, NUM_CLASSES + 1)
    for name, each in loss.state_dict().items():
        assert torch.equal(each, before[name]), name


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("label", ["background", "one class"])
def test_batches_of_one_label_are_finite(text, label):
    loss = make(text)
    logits, targets, objects = batch(loss, 5)
    targets = torch.full_like(targets, NUM_CLASSES if label == "background" else 2)
    for _ in range(3):
        value = loss(logits, targets, torch.zeros_like(objects))
    value.backward()
    assert value > 0 and logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("text", EVERY)
def test_one_region_is_a_batch(text):
    loss = make(text)
    logits, _, objects = batch(loss, 1)
    for label in range(NUM_CLASSES + 1):
        assert loss(logits, torch.tensor([label]), objects).isfinite()


@pytest.mark.parametrize("text", EVERY)
def test_a_class_without_training_data_is_no_problem(text):
    nothing = ClassCounts(
        tuple("abc"), COUNTS.image_count * [1, 0, 1], COUNTS.instance_count * [1, 0, 1], 1000
    )  # and one that is in every image
    loss = build_loss(text, NUM_CLASSES, nothing)
    logits, targets, objects = batch(loss, 20)
    for _ in range(3):
        value = loss(logits, torch.where(targets == 1, 0, targets), objects)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    assert loss.scores(logits).isfinite().all()


@pytest.mark.parametrize("text", EVERY)
def test_extreme_logits_are_finite(text):
    loss = make(text)
    logits, targets, objects = batch(loss, 12)
    large = (logits.detach().float() * 100).requires_grad_()
    value = loss(large, targets, objects)
    value.backward()
    assert value.isfinite() and large.grad.isfinite().all()
    scores = loss.scores(large)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("text", EVERY)
def test_inputs_are_not_changed(text):
    loss = make(text)
    logits, targets, objects = batch(loss, 8)
    copies = [each.detach().clone() for each in (logits, targets, objects)]
    loss(logits, targets, objects)
    loss.scores(logits)
    for each, was in zip((logits, targets, objects), copies):
        assert torch.equal(each, was)


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(text, dtype):
    loss = make(text)
    torch.manual_seed(0)  # of what is drawn
    logits, targets, objects = batch(loss, 8)
    narrow = logits.detach().to(dtype)
    expected = copy.deepcopy(loss)(narrow.double(), targets, objects).item()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(narrow.requires_grad_(), targets, objects)
        scores = loss.scores(narrow)
    assert value.dtype == scores.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(scores, loss.scores(narrow.float()), rtol=0, atol=0)
    value.backward()
    assert narrow.grad.isfinite().all()


@pytest.mark.parametrize("text", STATEFUL)
def test_state_moves_in_training_only(text):
    loss = make(text)
    logits, targets, objects = batch(loss, 8)
    states = [copy.deepcopy(loss.state_dict())]
    for mode in (False, True):
        loss.train(mode)(logits, targets, objects)
        loss.scores(logits)
        states.append(copy.deepcopy(loss.state_dict()))
    first, evaluated, trained = states
    assert all(torch.equal(first[name], evaluated[name]) for name in first)
    assert not all(torch.equal(first[name], trained[name]) for name in first)


@pytest.mark.parametrize("text", EVERY)
def test_a_saved_loss_continues_from_its_state(text, tmp_path):
    loss, resumed = make(text), build_loss(text, NUM_CLASSES)
    steps = [batch(loss, 8, seed) for seed in range(4)]
    for step in steps[:2]:
        loss(*step)
    torch.save(loss.state_dict(), tmp_path / "loss.pth")
    resumed.load_state_dict(torch.load(tmp_path / "loss.pth", weights_only=True))
    for step in steps[2:]:
        values = []
        for each in (loss, resumed):
            torch.manual_seed(0)
            values.append(each(*step))
        assert torch.equal(*values)


@pytest.mark.parametrize("name", NAMES)
def test_more_classes_change_the_shapes_only(name):
    loss = make(name, num_classes=17)
    logits, targets, objects = batch(loss, 9)
    assert loss(logits, targets, objects).isfinite()
    assert loss.scores(logits).shape == (9, 18)


@pytest.mark.parametrize(
    "name", ["bags", "balanced_softmax", "balanced_sigmoid", "ecm", "federated", "eql"]
)
def test_counts_are_asked_for_when_they_are_needed(name):
    asked = []

    def count():
        asked.append(name)
        return COUNTS

    loss = build_loss(name, NUM_CLASSES, count)
    step = batch(loss, 8)
    assert not asked
    values = []
    for each in (loss, loss, make(name)):
        torch.manual_seed(0)
        values.append(each(*step))
    assert len(asked) == 1
    assert torch.equal(values[0], values[2]) and torch.equal(values[1], values[2])
    with pytest.raises(ValueError, match="give counts=, or load a checkpoint"):
        build_loss(name, NUM_CLASSES)(*step)
    with pytest.raises(ValueError, match="has 3 classes, this head 4"):
        build_loss(name, 4, COUNTS)


def test_groups_follow_the_counts_that_are_loaded():
    loss, other = make("bags"), make("bags")
    step = batch(loss, 8)
    loss(*step)
    other.counts.instance_count[:] = torch.tensor([8, 5000, 200])
    loss.load_state_dict(other.state_dict())
    assert [group.tolist() for group in loss.groups()] == [[0], [], [2], [1]]
    assert torch.equal(loss.scores(step[0]), other.scores(step[0]))


def test_sums_of_gradients_that_cancel_stay_exact():
    # A million steps of a class that is not there: float32 would stand still at 2 ** 24 parts.
    loss = make("eql_v2")
    loss.negative_gradient.fill_(2.0**26)
    loss(torch.zeros(1, 4), torch.tensor([3]))
    assert (loss.negative_gradient > 2.0**26).all()


def test_unknown_names_and_options_list_the_known_ones():
    with pytest.raises(KeyError, match="Unknown loss 'sesaw'. Known: bags, .*seesaw"):
        build_loss("sesaw", 3)
    with pytest.raises(ValueError, match="has no option r. Its options: p, q, eps"):
        build_loss("seesaw(r=2)", 3)
    with pytest.raises(ValueError, match="Can't read the loss 'seesaw.2.'"):
        build_loss("seesaw(2)", 3)
    with pytest.raises(ValueError, match="counts from the training set"):
        build_loss("eql(counts=3)", 3)
    assert parse_loss("bags(edges=[5, 50])") == ("bags", {"edges": [5, 50]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("focal(gamma=-1)", "gamma is -1"),
        ("focal(gamma=abc)", "gamma is 'abc', expected a number"),
        ("focal(alpha=1.5)", "alpha is 1.5"),
        ("focal(unused_column=no)", "True or False"),
        ("loce(background_score=0)", "background_score is 0"),
        ("loce(initial_score=2)", "initial_score is 2"),
        ("bags(others_ratio=-1)", "others_ratio is -1"),
        ("bags(edges=10)", "edges are 10"),
        ("bags(edges=[10, x])", "edges is 'x'|Can't read"),
        ("seesaw(eps=0)", "eps is 0"),
        ("seesaw(p=abc)", "p is 'abc'"),
        ("seesaw(q=True)", "q is True"),
        ("eql(threshold=foo)", "threshold is 'foo'"),
        ("eql(threshold=1e999)", "threshold is inf"),
        ("eql_v2(gamma=none)", "gamma is 'none'"),
        ("ecm(background_share=0)", "background_share is 0"),
        ("federated(classes=x)", "classes is 'x', expected a whole number"),
        ("federated(classes=1.5)", "classes is 1.5"),
        ("balanced_softmax(count=foo)", "'image' or 'instance'"),
        ("balanced_softmax(tau=1e999)", "tau is inf"),
        ("focal(divide_by=classes)", "'rois' or 'positives'"),
        ("eql(prior=1)", "prior is 1"),
        ("eql_v2(prior=0)", "prior is 0"),
        ("bags(edges=[100, 10])", "ascending"),
        ("loce(momentum=1)", "momentum is 1"),
        ("inverse_logn(momentum=0)", "momentum is 0"),
        ("inverse_logn(beta=max)", "'none' or 'min'"),
        ("inverse_logn(columns=both)", "'foreground' or 'all'"),
        ("logit_norm(tau=0)", "tau is 0"),
        ("logit_norm(test_scores=both)", "'normalized' or 'raw'"),
    ],
)
def test_values_outside_their_range_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make(text)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expects logits of shape \(R, 5\), found \(2, 4\)"):
        make("seesaw")(torch.zeros(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_declares_whether_its_logits_can_be_calibrated(name):
    loss = make(name)
    if name in ("bags", "seesaw", "ecm", "eql_v2", "logit_norm"):
        assert not loss.calibratable
        with pytest.raises(ValueError, match="can't be calibrated: .*without calibration"):
            loss.check_calibratable()
    else:
        assert loss.calibratable
        loss.check_calibratable()


def test_other_layouts_change_whether_it_can():
    assert make("logit_norm(test_scores=raw)").calibratable
    assert not make("focal(unused_column=False)").calibratable


@pytest.mark.parametrize(
    ("name", "prior"), [("eql", 0.001), ("eql_v2", 0.001), ("balanced_sigmoid", 0.001),
                        ("focal", 0.01), ("sigmoid_cross_entropy", 0.5), ("federated", 0.5)]
)  # fmt: skip
def test_sigmoids_start_from_their_prior(name, prior):
    bias = torch.tensor(make(name).initial_bias, dtype=torch.float64)
    assert bias.sigmoid().item() == pytest.approx(prior)


def test_a_class_of_ones_own_is_chosen_by_name(monkeypatch):
    monkeypatch.setattr(LOSS_REGISTRY, "_entries", dict(LOSS_REGISTRY._entries))

    class Halved(SoftmaxLoss):
        def training_logits(self, logits):
            return logits / 2

    LOSS_REGISTRY.register("halved")(Halved)
    loss = build_loss("halved", 3)
    logits, targets, _ = batch(loss, 4)
    assert torch.equal(loss(logits, targets), make("cross_entropy")(logits / 2, targets))
