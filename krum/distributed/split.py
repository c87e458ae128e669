"""A model split by neurons over processes, trained with Krum under attack: the review's objection 5, run.

Every rank holds some neurons of each layer of a perceptron: their columns of the weights, for all n workers. The ranks
exchange activations and derivatives, as tensor parallelism does. Of the gradients only distances go round
(`krum.sharded`): all ranks take the same worker, and each steps in its own slice. The tempting shortcut is there, too:
each rank runs Krum on its own slice, and the slices of a step come from different workers.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from krum.distributed import sharded
from krum.rules import aggregation
from krum.simulation import datasets
from krum.simulation.draws import stream
from krum.simulation.parameters import Cell, make_cell
from krum.simulation.round import start

DEVIATION = 200.0  # of the Gaussian attackers' coordinates


class SplitModel:
    """This rank's neurons of one seed's model, with the data of the simulation."""

    def __init__(self, cell: Cell, seed: int):
        self.state = start(cell, datasets.load(cell.dataset), seeds=[seed])
        ranks, rank = dist.get_world_size(), dist.get_rank()
        self.columns = [torch.arange(out).tensor_split(ranks)[rank] for _, out in self.state.model.layers]
        self.slices = [
            (weight[0][:, columns].clone(), bias[0][columns].clone())
            for (weight, bias), columns in zip(self.state.parameters, self.columns, strict=True)
        ]
        role = f"attack noise of rank {rank} of {ranks}"
        self._noise = torch.Generator().manual_seed(int(stream(seed, role).generate_state(1)[0]))
        self._only_this_rank = [dist.new_group([member]) for member in range(ranks)][rank]
        self.agreed = 0  # rounds in which all ranks took the same worker

    @torch.no_grad()
    def train_one_round(self, together: bool) -> None:
        """One step of all ranks: the rule's on whole gradients if `together`, else each rank's on its own slices."""
        cell, state = self.state.cell, self.state
        samples, labels = state.batches.of(state.round, slice(state.honest))
        sent = []
        for honest in self._gradients(samples[0], labels[0]):
            noise = torch.empty(cell.byzantine, *honest.shape[1:]).normal_(0, DEVIATION, generator=self._noise)
            sent.append(torch.cat([honest, noise]))
        group = None if together else self._only_this_rank
        weights = sharded.weights(sent, state.rule.name, cell.declared_f, group=group)
        total = weights.clone()
        dist.all_reduce(total)
        self.agreed += bool(torch.equal(total, weights * dist.get_world_size()))
        steps = [aggregation.combine(weights, part.flatten(1)).view(part.shape[1:]) for part in sent]
        for (weight, bias), of_weight, of_bias in zip(self.slices, steps[::2], steps[1::2], strict=True):
            weight.sub_(of_weight, alpha=cell.learning_rate)
            bias.sub_(of_bias, alpha=cell.learning_rate)
        state.round += 1

    def error(self) -> float:
        """The error on the held-out fold."""
        folds = self.state.folds
        held_out = torch.from_numpy(folds.held_out[0])
        logits = self._forward(folds.samples(held_out[None])[0])[-1]
        return float((logits.argmax(-1) != folds.labels[held_out]).double().mean())

    def _forward(self, samples: Tensor) -> list[Tensor]:
        """Every layer's inputs [s, in], then the logits, whole on every rank."""
        inputs = [samples]
        for layer, (weight, bias) in enumerate(self.slices):
            values = inputs[-1] @ weight + bias
            inputs.append(self._whole(values if layer == len(self.slices) - 1 else values.relu_(), layer))
        return inputs

    def _gradients(self, samples: Tensor, labels: Tensor) -> list[Tensor]:
        """This rank's slices of the honest workers' gradients, by layer: weight [h, in, columns], bias [h, columns]."""
        batch = self.state.cell.batch_size
        *inputs, logits = self._forward(samples)
        delta = logits.softmax(-1)
        delta[torch.arange(len(labels)), labels] -= 1
        gradients: list[Tensor] = []
        for layer in reversed(range(len(self.slices))):
            at_columns = delta[:, self.columns[layer]]
            by_worker = at_columns.unflatten(0, (-1, batch)) / batch
            of_weight = torch.einsum("nbi,nbo->nio", inputs[layer].unflatten(0, (-1, batch)), by_worker)
            gradients = [of_weight, by_worker.sum(1), *gradients]
            if layer:
                delta = at_columns @ self.slices[layer][0].T
                dist.all_reduce(delta)
                delta = delta * (inputs[layer] > 0)
        return gradients

    def _whole(self, values: Tensor, layer: int) -> Tensor:
        """All neurons' values from those of each rank's columns."""
        whole = values.new_zeros((len(values), self.state.model.layers[layer][1]))
        whole[:, self.columns[layer]] = values
        dist.all_reduce(whole)
        return whole


def cell(dataset: str, workers: int, byzantine: int, rounds: int) -> Cell:
    """Krum against Gaussian attackers, as many as it is told."""
    return make_cell(
        {
            "dataset": dataset,
            "aggregator": "krum",
            "attack": {"name": "gaussian", "standard_deviation": DEVIATION},
            "workers": workers,
            "byzantine_fraction": (byzantine + 0.5) / workers,  # which is rounded down
            "declared_f": byzantine,
            "rounds": rounds,
        }
    )


def train(seed: int, dataset: str, workers: int, byzantine: int, rounds: int, together: bool) -> list[dict[str, float]]:
    """A row for each recorded round: error, and the share of rounds so far in which all ranks chose alike."""
    trained = cell(dataset, workers, byzantine, rounds)
    model, rows = SplitModel(trained, seed), []
    for round_ in range(rounds + 1):
        if round_:
            model.train_one_round(together)
        if round_ % trained.evaluate_every == 0 or round_ == rounds:
            agreed = model.agreed / round_ if round_ else 1.0
            rows.append({"round": round_, "test_error": model.error(), "agreed": agreed})
    return rows
