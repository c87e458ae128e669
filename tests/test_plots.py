"""What the figures show: panels in the paper's order, fixed styles, and captions that say what was measured."""

import shutil

import numpy as np
import pandas as pd
import pytest

from krum.rules.aggregators import AGGREGATORS
from krum.suite import experiment, probes, store
from krum.suite.figures import drawing as plots


def rows_of(spec, seeds=3):
    """Rows as the workflow would write them: real ones of the probes, drawn numbers for the training runs."""
    rng = np.random.default_rng(0)
    rows = []
    for cell in spec.cells:
        for seed in range(seeds):
            for round_ in sorted({*range(0, 100, 20), cell.rounds}):
                rows.append(
                    {
                        **store.constants(cell),
                        "seed": seed,
                        "round": round_,
                        "test_error": rng.uniform(),
                        "byzantine_weight": rng.uniform() if round_ else np.nan,
                        "differs": rng.uniform() if round_ else np.nan,
                        "norm_ratio": rng.uniform() if round_ else np.nan,
                        "gradient_norm": rng.uniform(),
                        "gradient_noise": rng.uniform(),
                        "diverged": cell.aggregator == "average" and cell.byzantine > 0 and seed == 0,
                        "outside_guarantee": cell.aggregator == "krum" and cell.byzantine > 0,
                    }
                )
    for probe in spec.probes:
        options = {name: 100 if name == "dimension" and value > 1000 else value for name, value in probe.options}
        if probe.name in ("exchange", "split"):
            rows += processes(probe)
            continue
        if probes.PROBES[probe.name].training:
            options["rounds"] = 5
        for seed in range(2):
            for row in probes.run_probe(probe.name, seed, options):
                asked = {name: value for name, value in probe.options if name in row}
                rows.append({"measurement": probe.name, "seed": seed, **row, **asked})
    return pd.DataFrame(rows)


def processes(probe):
    """Rows as probes that start processes of their own would give them."""
    options, rng = dict(probe.options), np.random.default_rng(1)
    if probe.name == "split":
        each = [{"round": r, **dict.fromkeys(("test_error", "agreed", "whole_error"), rng.uniform())} for r in (0, 25)]
    else:
        names = ("averaging", "gathered", "in-parts")
        each = [{"method": name, "seconds": rng.uniform(), "bytes": 1e6 * rng.uniform()} for name in names]
    return [{"measurement": probe.name, "seed": seed, **options, **row} for seed in range(2) for row in each]


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
    assert labels(figure.axes[1])[-1] == "average, 0 % Byzantine"
    calm, reference = figure.axes[0].lines[0], figure.axes[1].lines[-1]
    assert np.array_equal(calm.get_ydata(), reference.get_ydata())
    assert reference.get_zorder() > figure.axes[1].lines[0].get_zorder(), "on top of what it is compared with"


def test_an_aggregator_looks_the_same_everywhere():
    seen = {}
    for name in ("figure4", "figure6"):
        for axes in draw(name).axes:
            for line in axes.lines:
                aggregator = line.get_label().split(",")[0].split(" (")[0]
                assert seen.setdefault(aggregator, line.get_color()) == line.get_color()
    assert len(set(seen.values())) == len(seen) == 3


def test_what_an_experiment_names_has_a_colour_of_its_own():
    named = {cell.aggregator for spec in experiment.load_all().values() for cell in spec.cells}
    assert named <= set(plots.STYLES)
    assert len({colour for colour, _ in plots.STYLES.values()}) == len(plots.STYLES)


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
    for name in ("fidelity.yaml", "schema.yaml"):
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


EXPERIMENTS = list(experiment.load_all())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_figure_is_whole(name):
    """Every panel has a title, labelled axes and a legend without repetitions, and the figure says what ran."""
    spec = experiment.load_all()[name]
    figure = draw(name)
    assert " ".join(figure.get_suptitle().split()) == spec.title
    caption = " ".join(figure.get_supxlabel().split())
    assert "seeds" in caption and "95 % bootstrap" in caption
    assert " ".join(spec.figure.get("note", "").split()) in caption
    panels = [axes for axes in figure.axes if axes.get_visible()]
    if spec.figure["kind"] == "heat":  # tables of colours, with the rules as their rows, and a colour bar
        *tables, bar = panels
        rows = {tick.get_text() for axes in tables for tick in axes.get_yticklabels()}
        named = {cell.aggregator if cell.workers > 1 else "one machine alone" for cell in spec.cells}
        assert all(any(row.startswith(name) for row in rows) for name in named)
        assert all(axes.get_title() and axes.get_xlabel() for axes in tables) and "error" in bar.get_ylabel()
        return
    for axes in panels:
        assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
        if axes.get_legend() is not None:
            assert len(set(labels(axes))) == len(labels(axes)) > 0
    assert any(axes.get_legend() is not None for axes in panels)
    names = " ".join(text for axes in panels if axes.get_legend() for text in labels(axes))
    named = {cell.aggregator if cell.workers > 1 else "one machine alone" for cell in spec.cells}
    assert name in ("figure3", "choices") or all(one in names for one in named)


def test_figure5_says_where_it_lies_outside_the_theorem():
    spec = experiment.load_all()["figure5"]
    rows = rows_of(spec).assign(outside_guarantee=lambda r: (r["aggregator"] == "krum") & (r["workers"] == 20))
    names = labels(plots.draw(rows, {"title": spec.title, "figure": spec.figure}).axes[0])
    assert any("n = 20" in label and "outside 2f + 2 < n" in label for label in names)
    assert any("n = 40" in label and "outside" not in label for label in names)


def test_a_wide_sweep_goes_on_below(tmp_path):
    for name in ("fidelity.yaml", "schema.yaml"):
        shutil.copy(experiment.EXPERIMENTS / name, tmp_path)
    path = tmp_path / "wide.yaml"
    path.write_text(
        "title: t\nclaim: c\nfigure: {kind: curves, columns: batch_size}\ngrid:\n"
        "  - {dataset: spambase, aggregator: krum, batch_size: [1, 2, 3, 4, 5, 6, 7]}\n"
    )
    spec = experiment.load(path)
    figure = plots.draw(rows_of(spec), {"title": spec.title, "figure": spec.figure})
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 7
    assert figure.get_figwidth() < 30


@pytest.mark.parametrize("name", ["figure2", "figure3", "figure4", "figure6"])
def test_files_are_the_same_every_time(name, tmp_path):
    first = [path.read_bytes() for path in plots.save(draw(name), tmp_path / "a")]
    second = [path.read_bytes() for path in plots.save(draw(name), tmp_path / "b")]
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]


def test_a_sweep_says_from_which_x_on_a_rule_is_better():
    """Averaging's error rises with the rate and crosses Krum's level half-way between two of them."""
    spec = experiment.load_all()["transient"]
    rows = rows_of(spec)
    rates = sorted({cell.fault_rate for cell in spec.cells} - {0})
    level = 0.1 + 0.1 * (np.log10(rates[3]) + np.log10(rates[4])) / 2
    averaged = (rows["aggregator"] == "average") & (rows["workers"] > 1)
    rise = 0.1 + 0.1 * np.log10(rows["fault_rate"].where(rows["fault_rate"] > 0, 1))
    rows["test_error"] = (rise - level + 0.5).where(averaged, 0.5 + 0.01 * (rows["aggregator"] == "multi-krum"))
    figure = plots.draw(rows, {"title": spec.title, "figure": spec.figure})
    place = f"{np.sqrt(rates[3] * rates[4]):.2g}"
    for axes in figure.axes:
        assert any(f"better than average from {place} [{place}, {place}] on" in label for label in labels(axes))


def test_one_machine_alone_is_a_level_beside_every_sweep():
    spec = experiment.load_all()["cost-of-safety"]
    figure = draw("cost-of-safety")
    assert any("one machine alone, 60 a step" in label for label in labels(figure.axes[-1]))
    levels = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [0, 1]]
    assert (
        len({line.get_ydata()[0] for line in levels})
        == 2
        == len({c.batch_size for c in spec.cells if c.workers == 1 and c.dataset == "mnist"})
    )
