"""byzfl's client and server loop on our data: its own classes, put together as its documentation does.

byzfl finds models by name in a module of its own, where `fc_mnist` is 784-100-10; the model for Spambase is put there.
Data are tensors in memory, without byzfl's image transforms. Its Gaussian attackers all send the same vector.
"""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import import_byzfl

MODELS = {"mnist": "fc_mnist", "spambase": "fc_spambase"}
DEVIATION = 200.0
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


@dataclass
class Fold:
    """What is trained on, and what is held out."""

    features: torch.Tensor
    labels: torch.Tensor
    held_out_features: torch.Tensor
    held_out_labels: torch.Tensor


class Loop:
    """One seed of a cell: honest clients with shards of their own, attackers, and a server."""

    def __init__(self, cell, fold):
        self.byzfl = import_byzfl()
        self.byzfl.fed_framework.models.fc_spambase = Spambase
        shared = {
            "model_name": MODELS[cell.dataset],
            "device": "cpu",
            "optimizer_name": "SGD",
            "learning_rate": cell.learning_rate,
            "weight_decay": 0.0,
            "milestones": [],
            "learning_rate_decay": 1.0,
        }
        honest = cell.workers - cell.byzantine
        data = TensorDataset(fold.features, fold.labels)
        data.targets = fold.labels  # where byzfl looks for them
        held_out = TensorDataset(fold.held_out_features, fold.held_out_labels)
        shards = self.byzfl.DataDistributor(
            {
                "data_distribution_name": "iid",
                "distribution_parameter": 1.0,
                "nb_honest": honest,
                "data_loader": DataLoader(data, cell.batch_size),
                "batch_size": cell.batch_size,
            }
        ).split_data()
        self.clients = [
            self.byzfl.Client(
                {
                    **shared,
                    "loss_name": "NLLLoss",
                    "LabelFlipping": False,
                    "training_dataloader": shard,
                    "momentum": 0.0,
                    "nb_labels": int(fold.labels.max()) + 1,
                    "store_per_client_metrics": False,
                }
            )
            for shard in shards
        ]
        self.attackers = self.byzfl.ByzantineClient(
            {"name": "Gaussian", "f": cell.byzantine, "parameters": {"mu": 0.0, "sigma": DEVIATION}}
        )
        self.server = self.byzfl.Server(
            {
                **shared,
                "test_loader": DataLoader(held_out, EVALUATED_AT_ONCE),
                "aggregator_info": {"name": "Krum", "parameters": {"f": cell.declared_f}},
                "pre_agg_list": [],
            }
        )
        self._send_model()

    def step(self):
        for client in self.clients:
            client.compute_gradients()
        honest = [client.get_flat_gradients_with_momentum() for client in self.clients]
        self.server.update_model_with_gradients(honest + self.attackers.apply_attack(honest))
        self._send_model()

    def record(self):
        self.server.compute_test_accuracy()

    def _send_model(self):
        model = self.server.get_dict_parameters()
        for client in self.clients:
            client.set_model_state(model)
