"""Rows of an experiment's shape, to draw and to describe."""

import numpy as np
import pandas as pd

from krum.suite import probes, store

DRAWN = ("test_error", "byzantine_weight", "differs", "norm_ratio", "gradient_norm", "gradient_noise")


def rows_of(spec, seeds=2):
    """Rows as the workflow would write them: real ones of the cheap probes, drawn numbers for everything else."""
    rng = np.random.default_rng(0)
    rows = []
    for cell in spec.cells:
        for seed in range(seeds):
            for round_ in (0, cell.rounds // 2, cell.rounds):
                row = {**store.constants(cell), "seed": seed, "round": round_}
                row["diverged"] = cell.aggregator == "average" and cell.byzantine > 0 and seed == 0
                row["outside_guarantee"] = cell.aggregator == "krum" and cell.byzantine > 0
                rows.append({**row, **{name: rng.uniform() for name in DRAWN}})
    for probe in spec.probes:
        rows += [{"measurement": probe.name, **row} for seed in range(seeds) for row in probe_rows(probe, seed, rng)]
    return pd.DataFrame(rows)


def probe_rows(probe, seed, rng):
    options = probes.all_options(probe.name, dict(probe.options))
    drawn = {
        "timing": [{"seconds": rng.uniform()}],
        "steering": [{"distance": rng.uniform()}],
        "split": [{"round": r, "test_error": 0.5, "agreed": 0.5, "whole_error": 0.4} for r in (0, 25)],
        "exchange": [
            {"method": name, "seconds": rng.uniform(), "bytes": 1e6 * rng.uniform()}
            for name in ("averaging", "gathered", "in-parts")
        ],
        "resilience": [
            {"noise": noise, "attack": attack, "inner_product": rng.uniform()}
            for noise in (0.001, 0.01, 0.1)
            for attack in ("none", "far")
        ],
        "choices": [
            {"order": order, "rank": rank, "share": rng.uniform(), "norm_ratio": 1 + seed / 10}
            for order in ("length", "distance")
            for rank in range(1, options.get("workers", 0) - options.get("byzantine", 0) + 1)
        ],
    }
    rows = drawn.get(probe.name) or probes.run_probe(probe.name, seed, dict(probe.options))
    return [{"seed": seed, **options, **row} for row in rows]
