"""What the figures show: every kind from rows of every experiment's shape, fixed styles, and captions."""

import math
import shutil
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
from figure_rows import rows_of
from PIL import Image

from krum.errors import InputError
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import DATASETS
from krum.suite import experiment, figures
from krum.suite.figures import labels, style

SPECS = experiment.load_all()


def draw(spec, rows=None):
    rows = rows_of(spec) if rows is None else rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return figures.draw(rows, {"title": spec.title, "figure": spec.figure})


@cache
def figure_of(name):
    return draw(SPECS[name])


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() is not None else []


def experiment_with(folder, grid, figure="{kind: curves}"):
    """An experiment of one block of parameters."""
    shutil.copytree(experiment.EXPERIMENTS, folder, dirs_exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(f"title: t\nclaim: c\nfigure: {figure}\ngrid:\n  - {grid}\n")
    return experiment.load(path)


def test_every_experiment_is_drawn_whole_and_without_warnings():
    """Every panel has a title, labelled axes and a legend without repetitions, and the figure says what ran."""
    assert {spec.figure["kind"] for spec in SPECS.values()} == set(figures.FIGURE_KINDS)
    for name, spec in SPECS.items():
        figure = figure_of(name)
        assert " ".join(figure.get_suptitle().split()) == spec.title
        caption = " ".join(figure.get_supxlabel().split())
        assert "seeds" in caption and "95 % interval" in caption, name
        assert " ".join(spec.figure.get("note", "").split()) in caption, name
        panels = [axes for axes in figure.axes if axes.get_visible()]
        shown = [text for axes in panels for text in legend(axes)]
        if spec.figure["kind"] == "heat":  # tables of colours, with the rules as their rows, and a colour bar
            *panels, bar = panels
            assert "error" in bar.get_ylabel()
            shown += [tick.get_text() for axes in panels for tick in axes.get_yticklabels()]
        else:
            assert all(axes.get_ylabel() for axes in panels) and shown, name
        for axes in panels:
            assert axes.get_title() and axes.get_xlabel(), name
            assert len(set(legend(axes))) == len(legend(axes)), (name, legend(axes))
        rules = {style.name(cell.aggregator) if cell.workers > 1 else "one machine alone" for cell in spec.cells}
        if spec.figure["kind"] not in ("resilience", "choices"):  # which are about one rule
            assert all(any(text.startswith(rule) for text in shown) for rule in rules), name


def test_figures_have_the_papers_panels_and_say_what_lies_outside_its_theorem():
    figure = draw(SPECS["figure4"], rows_of(SPECS["figure4"], seeds=3))
    shares = ("0 % Byzantine", "33 % Byzantine (6 of 20 Gaussian)")
    assert [axes.get_title() for axes in figure.axes] == [
        f"{d}, {share}" for d in ("Spambase", "MNIST") for share in shares
    ]
    assert legend(figure.axes[0]) == ["averaging", "Krum"]
    assert legend(figure.axes[1]) == ["averaging (1 of 3 seeds diverged)", "Krum (outside its guarantee)"]
    assert "20 workers, batch 3" in figure.get_supxlabel() and "3 seeds" in figure.get_supxlabel()
    rows = rows_of(SPECS["figure5"]).assign(outside_guarantee=lambda rows: rows["workers"] == 20)
    assert legend(draw(SPECS["figure5"], rows).axes[0]) == [
        "Krum (no attack, n = 20, f = 9, outside its guarantee)",
        "averaging (no attack, n = 20, outside its guarantee)",
        "Krum (9 of 20 omniscient, n = 20, f = 9, outside its guarantee)",
        "averaging (9 of 20 omniscient, samples = 300, n = 20, outside its guarantee)",
        "Krum (18 of 40 omniscient, n = 40, f = 18)",
    ]


def test_figure6_sets_averaging_without_attack_beside_the_attacked():
    unattacked, attacked, *_ = figure_of("figure6").axes
    assert legend(attacked)[-1] == "averaging, no attack"
    curve, reference = unattacked.lines[0], attacked.lines[-1]
    assert np.array_equal(curve.get_ydata(), reference.get_ydata())
    assert reference.get_zorder() > attacked.lines[0].get_zorder(), "on top of what it is compared with"


def test_an_aggregator_has_the_same_style_of_its_own_everywhere():
    named = {cell.aggregator for spec in SPECS.values() for cell in spec.cells}
    assert named <= set(style.STYLES)
    assert len({colour for colour, _ in style.STYLES.values()}) == len(style.STYLES)
    assert len({style.of_rule(name) for name in AGGREGATORS}) == len(AGGREGATORS)
    assert style.of_rule("yet-unknown") == style.of_rule("yet-unknown")
    assert style.NAMES.keys() <= {*AGGREGATORS, *ATTACKS, *DATASETS}
    assert len({style.name(name) for name in AGGREGATORS}) == len(AGGREGATORS)
    colours = {style.name(rule): colour for rule, (colour, _) in style.STYLES.items()}
    for name in ("figure4", "figure6"):
        for axes in figure_of(name).axes:
            for line in axes.lines:
                rule = line.get_label().split(",")[0].split(" (")[0]
                assert line.get_color() == colours[rule]


def test_unattacked_cells_belong_to_the_line_of_every_attack():
    rules = {style.name(cell.aggregator) for cell in SPECS["fault-rates"].cells if cell.dataset == "spambase"}
    for axes in figure_of("fault-rates").axes:
        if axes.get_ylabel() == "cross-validation error" and "Spambase" in axes.get_title():
            assert len(legend(axes)) == len(rules) + 2, "and two machines alone"


def test_whatever_is_swept_gives_curves_with_labels_of_their_own(tmp_path):
    for swept in (
        "batch_size: [3, 5]",
        "learning_rate: [0.1, 0.2]",
        "rounds: [10, 20]",
        "seeds: [2, 3]",
        "folds: [5, 10]",
        "declared_f: [6, 7]",
        "model: [{name: mlp, hidden: [3]}, {name: mlp, hidden: [3, 3]}]",
        "aggregator: [krum, {name: multi-krum, m: 2}, {name: multi-krum, m: 3}]",
        "attack: [{name: gaussian, standard_deviation: 1}, {name: gaussian, standard_deviation: 2}]",
    ):
        values = {"aggregator": "aggregator: krum", "attack": "attack: gaussian", swept.partition(":")[0]: swept}
        spec = experiment_with(
            tmp_path, f"{{dataset: spambase, byzantine_fraction: 0.33, {', '.join(values.values())}}}"
        )
        (axes,) = draw(spec).axes
        assert len(set(legend(axes))) == len(legend(axes)) == len(spec.cells) > 1, swept


def test_a_wide_sweep_goes_on_below(tmp_path):
    grid = "{dataset: spambase, aggregator: krum, batch_size: [1, 2, 3, 4, 5, 6, 7]}"
    figure = draw(experiment_with(tmp_path, grid, "{kind: curves, columns: batch_size}"))
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 7
    assert figure.get_figwidth() < 30


def test_a_sweep_says_from_which_x_on_a_rule_is_better():
    """Averaging's error rises with the rate and crosses Krum's level half-way between two of them."""
    spec = SPECS["transient"]
    rows = rows_of(spec)
    rates = sorted({cell.fault_rate for cell in spec.cells} - {0})
    level = 0.1 + 0.1 * (np.log10(rates[3]) + np.log10(rates[4])) / 2
    averaged = (rows["aggregator"] == "average") & (rows["workers"] > 1)
    rise = 0.1 + 0.1 * np.log10(rows["fault_rate"].where(rows["fault_rate"] > 0, 1))
    rows["test_error"] = (rise - level + 0.5).where(averaged, 0.5 + 0.01 * (rows["aggregator"] == "multi-krum"))
    place = f"{np.sqrt(rates[3] * rates[4]):.2g}"
    for axes in draw(spec, rows).axes:
        assert any(f"better than averaging from {place} [{place}, {place}] on" in name for name in legend(axes))


def test_one_machine_is_a_level_beside_every_sweep():
    figure = figure_of("cost-of-safety")
    assert any("one machine alone, 60 a step" in name for name in legend(figure.axes[-1]))
    levels = {line.get_ydata()[0] for line in figure.axes[0].lines if list(line.get_xdata()) == [0, 1]}
    machines = [cell for cell in SPECS["cost-of-safety"].cells if cell.workers == 1 and cell.dataset == "mnist"]
    assert len(levels) == 2 == len({cell.batch_size for cell in machines})


def test_files_are_the_same_every_time_and_carry_the_digest_of_their_results(tmp_path):
    first, second = (
        figures.save(draw(SPECS["figure6"]), tmp_path / folder / "figure6", "sha256:0123") for folder in ("a", "b")
    )
    assert [path.name for path in first] == ["figure6.png", "figure6.pdf"]
    for path, again in zip(first, second, strict=True):
        assert path.read_bytes() == again.read_bytes() and b"sha256:0123" in path.read_bytes(), path
    edges = np.asarray(Image.open(first[0]).convert("L"))[[0, -1]]
    assert (edges == 255).all(), "nothing is cut off above or below"


REFUSED = {
    "{kind: curve}": "figure.kind: unknown figure kind 'curve'; did you mean 'curves'?",
    "{kind: curves, refrence: {aggregator: krum}}": "unknown key of curves 'refrence'; did you mean 'reference'?",
    "{kind: curves, declares: true}": "figure: unknown key of curves 'declares'",
    "{kind: curves, columns: atack}": "figure.columns: unknown value 'atack'; did you mean 'attack'?",
    "{kind: curves, log: 1}": "figure.log: found 1; give true or false",
    "{kind: curves, reference: krum}": "figure.reference: found 'krum'; give {aggregator: name}",
    "{kind: curves, reference: {aggregator: krun}}": "unknown aggregator 'krun'; did you mean 'krum'?",
    "{kind: curves, reference: {aggregator: median}}": "figure.reference: 'median' has no unattacked curve in the grid",
    "{kind: sweep}": "figure.x is missing; give one of workers, byzantine",
    "{kind: sweep, x: title}": "figure.x: unknown value 'title'",
    "{kind: sweep, x: workers, quantities: test_error}": "figure.quantities: found 'test_error'; give a list",
    "{kind: sweep, x: workers, quantities: [error]}": "figure.quantities: unknown value 'error'",
    "{kind: sweep, x: workers, quantities: [rounds_to_target]}": "figure.target is missing",
    "{kind: sweep, x: workers, target: 0}": "figure.target: found 0; give a positive number",
    "{kind: sweep, x: workers, crossing: krun}": "figure.crossing: unknown aggregator 'krun'; did you mean 'krum'?",
    "{kind: complexity}": "figure.kind: complexity draws the probe 'timing', which is not among the probes; add it",
}


def test_a_figure_that_could_not_be_drawn_is_refused_in_one_line(tmp_path):
    for entry, message in REFUSED.items():
        with pytest.raises(InputError) as refusal:
            experiment_with(tmp_path, "{dataset: spambase, aggregator: krum}", entry)
        assert message in str(refusal.value) and "\n" not in str(refusal.value), entry
    with pytest.raises(InputError, match="shards draws the probe 'split'"):
        figures.check("figure", {"kind": "shards"}, [], {"exchange"})
    with pytest.raises(InputError, match="curves draws training runs, and there is no grid; add one"):
        figures.check("figure", {"kind": "curves"}, [], {"exchange"})
    with pytest.raises(InputError, match="unknown key of against 'columns'"):
        figures.draw(
            pd.DataFrame(), {"title": "t", "figure": {"kind": "against", "x": "workers", "columns": "dataset"}}
        )


def test_a_figure_kind_is_one_function(monkeypatch):
    monkeypatch.setattr("krum.suite.figures.registry.FIGURE_KINDS", kinds := dict(figures.FIGURE_KINDS))

    @figures.figure_kind
    def last_errors(training: pd.DataFrame, plane: pd.DataFrame, *, log: bool = False):
        raise NotImplementedError

    assert kinds["last-errors"].measurements == ("training", "plane")
    with pytest.raises(InputError, match=r"figure.log: found 'yes'; give true or false"):
        figures.check("figure", {"kind": "last-errors", "log": "yes"}, list(SPECS["figure4"].cells), {"plane"})


def test_numbers_are_short():
    texts = {
        0.123456: "0.123",
        -4e-17: "0",
        12.0: "12",
        1e-7: "1e-07",
        123456.0: "1.23e+05",
        math.inf: "∞",
        math.nan: "-",
    }
    for value, text in texts.items():
        assert labels.number(value) == text
