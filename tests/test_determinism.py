"""The same seeds, the same bytes: whatever runs beside a job, in whatever order, and however often it was begun."""

import torch

from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.run import simulate
from krum.suite import store

CELLS = [
    *({"attack": name, "byzantine": 4, "declared_f": 4} for name in ATTACKS if name != "none"),
    *({"aggregator": rule, "attack": "gaussian", "declared_f": 2, "byzantine": 2} for rule in AGGREGATORS),
    *({"attack": attack, "byzantine": 0, "fault_rate": 0.1} for attack in ("bit-flip", "sign-flip", "gaussian")),
    {"attack": "stale", "byzantine": 1, "worker_momentum": 0.9, "aggregator": "centred-clipping"},
    {"model_options": (("hidden", (300, 300)),), "workers": 3, "declared_f": 0},
    {"model_options": (("hidden", ()),), "workers": 1, "aggregator": "average", "declared_f": 0, "batch_size": 40},
    {"aggregator": "multi-krum", "attack": "barycentre-collusion", "workers": 5, "byzantine": 4, "declared_f": 0},
]


def test_threads_change_no_byte_of_a_curve(make_cell, few_samples, tmp_path):
    """With 1 and 2 threads, whatever the process computed before."""

    def written(cell):
        store.write_curve(cell, simulate(cell, few_samples), tmp_path / "c.parquet", {})
        return (tmp_path / "c.parquet").read_bytes()

    for changes in CELLS:
        cell = make_cell(**{"rounds": 6, "evaluate_every": 3, **changes})
        first, before = written(cell), torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert written(cell) == first, changes
            assert torch.get_num_threads() == 2, "left as it was"
        finally:
            torch.set_num_threads(before)
