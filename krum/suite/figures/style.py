"""How things look and what they are called in every figure: rules, attacks, data sets, axes."""

from typing import Any

# What readers call rules, attacks and data sets; a name without an entry stands as it is.
NAMES = {
    "average": "averaging",
    "krum": "Krum",
    "multi-krum": "Multi-Krum",
    "medoid": "medoid",
    "geometric-median": "geometric median",
    "nearest-to-barycentre": "nearest to barycentre",
    "median": "coordinate-wise median",
    "trimmed-mean": "trimmed mean",
    "1-p-krum": "1-p Krum",
    "bulyan": "Bulyan",
    "centred-clipping": "centred clipping",
    "nnm-krum": "Krum after neighbour mixing",
    "none": "no attack",
    "gaussian": "Gaussian",
    "sign-flip": "sign flip",
    "barycentre-collusion": "colluding",
    "steer": "steering",
    "a-little-is-enough": "a little is enough",
    "inner-product-manipulation": "inner-product manipulation",
    "bit-flip": "bit flip",
    "label-flip": "label flip",
    "wrong-scale": "wrong scale",
    "nan": "NaN",
    "spambase": "Spambase",
    "spambase-log": "Spambase (log features)",
    "mnist": "MNIST",
}

# Of an aggregator: a colour that colour-blind readers can tell apart (Okabe and Ito), and a marker for print.
STYLES = {
    "average": ("#0072B2", "o"),
    "krum": ("#D55E00", "s"),
    "multi-krum": ("#009E73", "^"),
    "medoid": ("#CC79A7", "D"),
    "geometric-median": ("#E69F00", "v"),
    "nearest-to-barycentre": ("#56B4E9", "P"),
    "median": ("#000000", "X"),
    "trimmed-mean": ("#7F7F7F", "*"),
    "1-p-krum": ("#8C564B", "<"),
    "bulyan": ("#B2182B", "8"),
    "centred-clipping": ("#17BECF", "H"),
    "nnm-krum": ("#BCBD22", "X"),
    "krum-n-f-1": ("#F0B000", "p"),
    "krum-n-f-1-unsquared": ("#9467BD", ">"),
    "krum-unsquared": ("#1B7837", "h"),
    "krum-fourth-power": ("#4D4D4D", "d"),
}
OTHER_STYLES = [("#66A61E", "4"), ("#E7298A", "+"), ("#A6761D", "1"), ("#66628D", "2"), ("#1F1F8F", "3")]

GREY = "#444444"  # references, bounds, and a single machine
BYZANTINE_RED = "#B2182B"
ATTACK_LINES: dict[str, Any] = {"none": "-", "gaussian": "--"}  # where one panel shows several attacks
OTHER_ATTACK_LINE = (0, (1, 1))
REPEATED_LINES = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (2, 2)))  # of lines that share rule and attack in one panel
SINGLE_MACHINE_LINES = ("-", (0, (1, 1)))  # by the samples that it takes at a time

AXIS_LABELS = {
    "batch_size": "mini-batch size",
    "learning_rate": "learning rate",
    "workers": "workers n",
    "byzantine": "Byzantine workers",
    "declared_f": "declared f",
    "fault_rate": "probability that a worker misbehaves in a round",
    "strength": "strength of the attack",
    "worker_momentum": "worker momentum",
    "points": "distinct training points",
    "attack": "attack",
    "occurrence": "who misbehaves",
    "dimension": "dimension d",
}
QUANTITY_LABELS = {
    "test_error": "cross-validation error at round {rounds}",
    "byzantine_weight": "share of the weight given to attackers",
    "rounds_to_target": "rounds to an error of {target:g}",
    "norm_ratio": "length of the aggregate / of the mean gradient",
    "error_at_samples": "error after {samples:,.0f} samples",
    "error_at_arithmetic": "error after as much arithmetic",
}


def name(thing: str) -> str:
    """What readers call a rule, an attack or a data set."""
    return NAMES.get(thing, thing)


def of_rule(aggregator: str) -> tuple[str, str]:
    """Colour and marker of an aggregator; one that has none of its own gets one that depends on its name alone."""
    if aggregator in STYLES:
        return STYLES[aggregator]
    return OTHER_STYLES[sum(aggregator.encode()) % len(OTHER_STYLES)]
