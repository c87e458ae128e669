from dataclasses import replace

import numpy as np
import pytest
import torch

from krum.datasets import Samples
from krum.experiment import Cell
from krum.simulation import Simulation  # noqa: F401  first of all, for what it sets before the first matrix product

torch.set_num_threads(1)

CELL = Cell(
    dataset="spambase",
    model="mlp",
    model_options=(("hidden", (7, 5)),),
    aggregator="krum",
    aggregator_options=(),
    attack="none",
    attack_options=(),
    workers=11,
    byzantine=0,
    byzantine_fraction=0.0,
    declared_f=4,
    batch_size=2,
    learning_rate=0.1,
    rounds=20,
    evaluate_every=10,
    folds=3,
    seeds=3,
)


@pytest.fixture
def make_cell():
    """A small cell, with changes; naming an attack makes 4 of its 11 workers Byzantine."""

    def make(**changes):
        if changes.get("attack", "none") != "none":
            changes = {"byzantine": 4, "byzantine_fraction": 0.4, **changes}
        return replace(CELL, **changes)

    return make


@pytest.fixture(scope="session")
def few_samples():
    """90 samples of Spambase's shape whose label depends on the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 57)).astype(np.float32)
    return Samples(features, (features[:, :5].sum(1) > 0).astype(np.int64))
