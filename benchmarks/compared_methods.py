"""The methods that benchmarks/methods.py compares, and the sizes of LT-Glyphs."""

from __future__ import annotations

from dataclasses import dataclass

from logn_d2.engine.experiments import Row

CROSS_ENTROPY, LINEAR = "cross_entropy", "cross_entropy_linear"
# The default momentum of inverse LogN's averages is for the 24 epochs of LVIS v1. This one lets
# them cover the same part of a shorter training.
INVERSE_LOGN_STEPS = 1e-4 * 24 * 99_388 / 16
SAMPLERS = {"random": "TrainingSampler", "rfs": "RepeatFactorTrainingSampler"}


@dataclass(frozen=True)
class Size:
    """A size of LT-Glyphs.

    Attributes:
        config (str): config of all methods, in configs/.
        not_frequent (float): smallest share of images that show a frequent class.
        edges (tuple[int, ...]): numbers of instances that separate BAGS's groups: each group has
            the same share of classes as on LVIS v1 (17, 34, 28 and 21 %), where the edges are 10,
            100 and 1,000.
        pretraining (str): config of the initial weights; "" for random weights.
    """

    config: str
    not_frequent: float
    edges: tuple[int, ...]
    pretraining: str = ""


SIZES = {
    "demo": Size(
        "glyphs_demo_faster_rcnn_R_18_FPN_pretrained.yaml",
        0.033,
        (6, 48, 200),
        "glyphs_pretrain_faster_rcnn_R_18_FPN.yaml",
    ),
    "synonyms": Size(
        "glyphs_synonyms_faster_rcnn_R_18_FPN_pretrained.yaml",
        0.033,
        (6, 48, 200),
        "glyphs_pretrain_faster_rcnn_R_18_FPN.yaml",
    ),
    "tiny": Size("glyphs_tiny_mask_rcnn_R_18_FPN.yaml", 0.3, (4, 10, 20)),
}


AFTER = (
    Row("LogN", "logn"),
    Row("LogN, mean only", "logn_mean"),
    Row("LogN without beta", "logn_no_beta"),
    Row("NorCal, gamma 0.6", "norcal(gamma=0.6)"),
    Row("NorCal, class-balanced weights", "class_balanced(gamma=0.999)"),
    Row("FRACAL", "fracal"),
    Row("auto", "auto"),
)
# The rows of a cosine classifier have length one, so tau-norm applies only to linear ones.
AFTER_LINEAR = (*AFTER, Row("tau-norm", "tau_norm"))


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        title (str): title in the table.
        config (str): config with its changes, in configs/; "" for none.
        loss (str): MODEL.LOGN.LOSS, with {share} and {edges} of the size and {momentum} for the
            length of training; "" for the config's.
        length (float): length of its training relative to cross-entropy's.
        first (str): the first stage of a second stage.
        after (tuple[Row, ...]): calibrations with which it is also evaluated.
    """

    title: str
    config: str = ""
    loss: str = ""
    length: float = 1.0
    first: str = CROSS_ENTROPY
    after: tuple[Row, ...] = ()

    def loss_for(self, size: Size, iterations: int) -> str:
        """MODEL.LOGN.LOSS on a size, for a training of so many iterations."""
        momentum = min(INVERSE_LOGN_STEPS / iterations, 1.0)
        return self.loss.format(share=size.not_frequent, edges=list(size.edges), momentum=momentum)


# Second stages have the length of their sources, relative to the first stage: 12 epochs after 12
# for BAGS and, in EQL v2's repository, for cRT and LWS; 6 after 24 for LOCE.
METHODS = {
    CROSS_ENTROPY: Method("cross-entropy", after=AFTER),
    "cross_entropy_long": Method("cross-entropy, twice as long", length=2.0, after=AFTER),
    LINEAR: Method("cross-entropy, linear", "linear/Base-Linear.yaml", after=AFTER_LINEAR),
    "eql": Method("EQL, linear", "eql/Base-EQL.yaml", "eql(threshold={share})"),
    "eql_v2": Method("EQL v2, linear", "eql_v2/Base-EQLv2.yaml"),
    "seesaw": Method("Seesaw loss", "seesaw/Base-Seesaw.yaml"),
    "bags": Method(
        "BAGS, linear",
        "bags/Base-BAGS.yaml",
        "bags(edges={edges}, others_ratio=8)",
        first=LINEAR,
    ),
    "loce": Method("LOCE", "loce/Base-LOCE.yaml", length=0.25),
    "crt": Method("cRT", "crt/Base-cRT.yaml"),
    "lws": Method("LWS", "lws/Base-LWS.yaml"),
    "focal": Method("focal loss", loss="focal"),
    "inverse_logn": Method("inverse LogN", loss="inverse_logn(momentum={momentum})"),
}
