"""What the figures show: panels in the paper's order, fixed styles, and captions that say what was measured."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from krum import experiment, plots
from krum.aggregators import AGGREGATORS


def rows_of(spec, seeds=3):
    rng = np.random.default_rng(0)
    rows = []
    for cell in spec.cells:
        for seed in range(seeds):
            for round_ in range(0, 101, 10):
                rows.append(
                    {
                        "dataset": cell.dataset,
                        "model": cell.model_label,
                        "aggregator": cell.aggregator,
                        "aggregator_options": json.dumps(dict(cell.aggregator_options)),
                        "attack": cell.attack,
                        "attack_options": json.dumps(dict(cell.attack_options)),
                        "workers": cell.workers,
                        "byzantine": cell.byzantine,
                        "byzantine_fraction": cell.byzantine_fraction,
                        "declared_f": cell.declared_f,
                        "batch_size": cell.batch_size,
                        "learning_rate": cell.learning_rate,
                        "seed": seed,
                        "round": round_,
                        "test_error": rng.uniform(),
                        "diverged": cell.aggregator == "average" and cell.byzantine > 0 and seed == 0,
                        "rounds": cell.rounds,
                        "seeds": cell.seeds,
                        "folds": cell.folds,
                        "cell": cell.slug,
                        "outside_guarantee": cell.aggregator == "krum" and cell.byzantine > 0,
                    }
                )
    return pd.DataFrame(rows)


def draw(name):
    spec = experiment.load_all()[name]
    return plots.draw(rows_of(spec), {"title": spec.title, "figure": spec.figure})


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_figure4_panels():
    figure = draw("figure4")
    assert [axes.get_title() for axes in figure.axes] == [
        "Spambase, 0 % Byzantine",
        "Spambase, 33 % Byzantine (6 of 20, gaussian)",
        "MNIST, 0 % Byzantine",
        "MNIST, 33 % Byzantine (6 of 20, gaussian)",
    ]
    assert labels(figure.axes[0]) == ["average", "krum"]
    assert labels(figure.axes[1]) == ["average (1 of 3 seeds diverged)", "krum (outside its guarantee)"]
    caption = figure.get_supxlabel()
    assert "20 workers, batch 3" in caption and "3 seeds" in caption and "95 % bootstrap" in caption
    assert figure.get_suptitle().startswith("Figure 4")


def test_figure6_sets_averaging_without_attack_beside_the_attacked():
    figure = draw("figure6")
    assert labels(figure.axes[1])[0] == "average, 0 % Byzantine"
    calm, attacked = figure.axes[0].lines[0], figure.axes[1].lines[0]
    assert np.array_equal(calm.get_ydata(), attacked.get_ydata())


def test_an_aggregator_looks_the_same_everywhere():
    seen = {}
    for name in ("figure4", "figure6"):
        for axes in draw(name).axes:
            for line in axes.lines:
                aggregator = line.get_label().split(",")[0].split(" (")[0]
                assert seen.setdefault(aggregator, line.get_color()) == line.get_color()
    assert len(set(seen.values())) == len(seen) == 3


def test_every_aggregator_has_a_style_of_its_own():
    styles = [plots.style(name) for name in AGGREGATORS]
    assert len(set(styles)) == len(AGGREGATORS)
    assert plots.style("yet-unknown") == plots.style("yet-unknown")


SWEPT = [
    "batch_size: [3, 5]",
    "learning_rate: [0.1, 0.2]",
    "rounds: [10, 20]",
    "seeds: [2, 3]",
    "folds: [5, 10]",
    "declared_f: [6, 7]",
    "model: [{name: mlp, hidden: [3]}, {name: mlp, hidden: [3, 3]}]",
    "aggregator: [krum, {name: multi-krum, m: 2}, {name: multi-krum, m: 3}]",
    "attack: [{name: gaussian, standard_deviation: 1}, {name: gaussian, standard_deviation: 2}]",
]


@pytest.mark.parametrize("swept", SWEPT)
def test_whatever_is_swept_gives_curves_with_labels_of_their_own(swept, tmp_path):
    for name in ("defaults.yaml", "schema.yaml"):
        shutil.copy(experiment.EXPERIMENTS / name, tmp_path)
    lines = {"aggregator": "aggregator: krum", "attack": "attack: gaussian", swept.partition(":")[0]: swept}
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "title: t\nclaim: c\nfigure: {kind: curves}\ngrid:\n  - dataset: spambase\n    byzantine_fraction: 0.33\n    "
        + "\n    ".join(lines.values())
    )
    spec = experiment.load(path)
    figure = plots.draw(rows_of(spec), {"title": spec.title, "figure": spec.figure})
    (axes,) = figure.axes
    assert len(set(labels(axes))) == len(labels(axes)) == len(spec.cells) > 1


@pytest.mark.parametrize("name", ["figure4", "figure6"])
def test_files_are_the_same_every_time(name, tmp_path):
    first = [path.read_bytes() for path in plots.save(draw(name), tmp_path / "a")]
    second = [path.read_bytes() for path in plots.save(draw(name), tmp_path / "b")]
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
