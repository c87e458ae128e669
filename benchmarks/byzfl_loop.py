"""byzfl's client and server loop on our data: its own classes, put together as its documentation does.

byzfl finds models by name in a module of its own, where `fc_mnist` is 784-100-10; the model for Spambase is put there.
Data are the first seed's folds, tensors in memory, without byzfl's image transforms. Its Gaussian attackers all send
the same vector.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import import_byzfl
from krum.simulation import datasets, draws
from krum.simulation.datasets import DATASETS

MODELS = {"mnist": "fc_mnist", "spambase": "fc_spambase"}
EVALUATED_AT_ONCE = 128  # byzfl's own default


class Spambase(torch.nn.Sequential):
    """57-100-100-2, with the logarithms of probabilities that byzfl's own models return."""

    def __init__(self):
        super().__init__(
            torch.nn.Linear(57, 100),
            torch.nn.ReLU(),
            torch.nn.Linear(100, 100),
            torch.nn.ReLU(),
            torch.nn.Linear(100, 2),
            torch.nn.LogSoftmax(1),
        )


class Loop:
    """One seed of a cell: honest clients with shards of their own, attackers, and a server."""

    def __init__(self, cell):
        byzfl, dataset = import_byzfl(), DATASETS[cell.dataset]
        byzfl.fed_framework.models.fc_spambase = Spambase
        folds = draws.split(cell, dataset, datasets.load(cell.dataset), [0], torch.device("cpu"), torch.float32)
        training, held_out = (
            TensorDataset(folds.features[0][fold], folds.labels[fold])
            for fold in (folds.training[0], folds.held_out[0])
        )
        training.targets = training.tensors[1]  # where byzfl looks for them
        shared = {
            "model_name": MODELS[cell.dataset],
            "device": "cpu",
            "optimizer_name": "SGD",
            "learning_rate": cell.learning_rate,
            "weight_decay": 0.0,
            "milestones": [],
            "learning_rate_decay": 1.0,
        }
        client = {
            **shared,
            "loss_name": "NLLLoss",
            "LabelFlipping": False,
            "momentum": 0.0,
            "nb_labels": dataset.classes,
            "store_per_client_metrics": False,
        }
        distributor = byzfl.DataDistributor(
            {
                "data_distribution_name": "iid",
                "distribution_parameter": 1.0,
                "nb_honest": cell.workers - cell.byzantine,
                "data_loader": DataLoader(training, cell.batch_size),
                "batch_size": cell.batch_size,
            }
        )
        self.clients = [byzfl.Client({**client, "training_dataloader": shard}) for shard in distributor.split_data()]
        gaussian = {"name": "Gaussian", "f": cell.byzantine, "parameters": {"mu": 0.0, "sigma": 200.0}}
        self.attackers = byzfl.ByzantineClient(gaussian)
        self.server = byzfl.Server(
            {
                **shared,
                "test_loader": DataLoader(held_out, EVALUATED_AT_ONCE),
                "aggregator_info": {"name": "Krum", "parameters": {"f": cell.declared_f}},
                "pre_agg_list": [],
            }
        )
        self._send_model()

    def run(self, rounds):
        """So many rounds, and an evaluation."""
        for _ in range(rounds):
            for client in self.clients:
                client.compute_gradients()
            honest = [client.get_flat_gradients_with_momentum() for client in self.clients]
            self.server.update_model_with_gradients(honest + self.attackers.apply_attack(honest))
            self._send_model()
        self.server.compute_test_accuracy()

    def _send_model(self):
        model = self.server.get_dict_parameters()
        for client in self.clients:
            client.set_model_state(model)
