"""The paper's claims that Figures 4 and 6 carry, on the real data, as far as they are true (300 rounds, few seeds).

The statements are those of the figures, not numbers of ours: a margin is the one that the statement names.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from krum.simulation import datasets
from krum.simulation.run import simulate
from krum.suite import experiment
from krum.suite.statistics import band

ROUNDS, SEEDS = 300, 5


@cache
def final_errors(dataset, aggregator, attack):
    """The error after the last round, one value per seed."""
    if dataset == "mnist" and datasets.find(datasets.DATA, "MNIST/raw/train-images-idx3-ubyte") is None:
        pytest.skip("MNIST is not there; `make data` gets it")
    specs = experiment.load_all()
    (cell,) = {
        cell
        for cell in specs["figure4"].cells + specs["figure6"].cells
        if (cell.dataset, cell.aggregator, cell.attack) == (dataset, aggregator, attack)
    }
    columns = simulate(replace(cell, rounds=ROUNDS, evaluate_every=ROUNDS, seeds=SEEDS), device="cpu")
    return columns["test_error"][columns["round"] == ROUNDS]


def mean(*what):
    return final_errors(*what).mean()


def upper_end(values):
    """The upper end of the 95 % interval of the mean."""
    return float(band(values[:, None])[2][0])


@pytest.mark.parametrize("dataset", ["spambase", "mnist"])
def test_averaging_without_attack_is_clearly_below_krum(dataset):
    difference = final_errors(dataset, "average", "none") - final_errors(dataset, "krum", "none")
    assert upper_end(difference) < 0


def test_averaging_under_attack_stays_at_the_majority_class_on_spambase():
    labels = datasets.load("spambase").labels
    majority = min(labels.mean(), 1 - labels.mean())
    assert mean("spambase", "average", "gaussian") == pytest.approx(majority, abs=0.02)


def test_averaging_under_attack_is_far_above_its_unattacked_error_on_mnist():
    assert mean("mnist", "average", "gaussian") > 2 * mean("mnist", "average", "none")


@pytest.mark.parametrize("dataset", ["spambase", "mnist"])
def test_krum_under_attack_is_at_least_as_good_as_without(dataset):
    difference = final_errors(dataset, "krum", "gaussian") - final_errors(dataset, "krum", "none")
    assert upper_end(difference) < 0.01


def test_multi_krum_under_attack_is_as_good_as_averaging_without_on_spambase():
    difference = final_errors("spambase", "multi-krum", "gaussian") - final_errors("spambase", "average", "none")
    assert np.abs(difference.mean()) < 0.02
