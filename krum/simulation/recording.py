"""What is recorded of a run: the held-out error and loss, and means over the rounds since the last record."""

import torch
from torch import Tensor

from krum.simulation.draws import Folds
from krum.simulation.full_gradient import gradient_statistics
from krum.simulation.gradients import flatten
from krum.simulation.models import Model, Parameters
from krum.simulation.round import Observed, State

SAMPLES_AT_ONCE, NUMBERS_AT_ONCE = 512, 2**19  # of each replica, and of all together: a CPU's cache should hold them

COLUMNS = (
    "seed",
    "round",
    "test_error",
    "test_loss",
    "byzantine_weight",
    "majority_error",
    "differs",
    "gradient_norm",
    "gradient_noise",
    "distance_to_target",
    "norm_ratio",
    "diverged",
)


class Recorder:
    """Makes the rows of a run.

    - `byzantine_weight`: the mean share of the aggregate's weight given to Byzantine vectors since the last recorded
      round; NaN at round 0, and for rules that have no weights.
    - `diverged`: some parameters are not finite. The error is then that of the predictions, of which a NaN among the
      logits is the greatest, the first NaN if there are several.
    - `majority_error`: the error of always answering the training fold's most frequent class.
    - `differs`: with `compare_with`, the share of rounds since the last recorded one in which that rule would have
      chosen otherwise from the same vectors.
    - `gradient_norm`, `gradient_noise`: with `measure_gradient`, `||g||` for the gradient g over the whole training
      fold, and `sqrt(E ||G - g||^2)` (the paper's `sqrt(d) sigma`) for one worker's mini-batch gradient G, exactly.
    - `norm_ratio`: the length of the honest part of the aggregate over that of the mean honest gradient, mean since
      the last recorded round; NaN for rules that always give the same weights, or none.
    - `distance_to_target`: where the attack steers to a model x*, `||x_t - x*|| / ||x_0 - x*||`.
    """

    def __init__(self, state: State):
        self.state, self._start = state, flatten(state.parameters)
        self._majority_errors = state.folds.majority_errors()
        self._observed: list[Observed] = []

    def add(self, observed: Observed) -> None:
        """Take note of one more round."""
        self._observed.append(observed)

    @torch.inference_mode()
    def record(self) -> dict[str, list]:
        """One value per replica of every column of COLUMNS, and a fresh start for the means."""
        state, observed = self.state, self._observed
        missing = [torch.nan] * len(state.seeds)
        errors, losses = evaluate(state.model, state.parameters, state.folds)
        norm, noise = missing, missing
        if state.cell.measure_gradient:
            norm, noise = gradient_statistics(state.model, state.parameters, state.folds, state.cell.batch_size)
        self._observed = []
        return {
            "seed": state.seeds,
            "round": [state.round] * len(state.seeds),
            "test_error": errors,
            "test_loss": losses,
            "byzantine_weight": _mean([each.byzantine_weight for each in observed], missing),
            "diverged": (~flatten(state.parameters).isfinite().all(-1)).tolist(),
            "majority_error": self._majority_errors,
            "differs": _mean([each.differs for each in observed], missing),
            "gradient_norm": norm,
            "gradient_noise": noise,
            "distance_to_target": missing if state.target is None else self._distances(state.target),
            "norm_ratio": _mean([each.norm_ratio for each in observed], missing),
        }

    def _distances(self, target: Tensor) -> list[float]:
        left = (flatten(self.state.parameters) - target).norm(dim=-1)
        return (left / (self._start - target).norm(dim=-1)).tolist()


def evaluate(model: Model, parameters: Parameters, folds: Folds) -> tuple[list[float], list[float]]:
    """Every replica's error and mean cross-entropy on its held-out fold."""
    errors, losses = [], []
    index, inside = folds.padded(folds.held_out)
    at_once = max(1, NUMBERS_AT_ONCE // (min(index.shape[1], SAMPLES_AT_ONCE) * folds.features.shape[-1]))
    for first in range(0, len(index), at_once):
        some = slice(first, first + at_once)
        layers, of_some = [(weight[some], bias[some]) for weight, bias in parameters], folds.of(some)
        blocks = index[some].split(SAMPLES_AT_ONCE, 1)
        logits = torch.cat([model.forward(layers, of_some.samples(block))[-1] for block in blocks], 1)
        labels, counted = folds.labels[index[some]], inside[some]
        wrong = (logits.argmax(-1) != labels) & counted
        loss = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none").where(counted, 0.0)
        errors += (wrong.sum(-1).double() / counted.sum(-1)).tolist()
        losses += (loss.sum(-1) / counted.sum(-1)).tolist()
    return errors, losses


def _mean(values: list[Tensor | None], missing: list[float]) -> list[float]:
    """The mean over rounds of what was observed in each replica; missing where nothing was."""
    seen = [value for value in values if value is not None]
    return torch.stack(seen).mean(0).tolist() if seen else missing
