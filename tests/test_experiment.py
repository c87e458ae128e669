"""What may stand in an experiment, what may not, and what one hears about it: one line, before any work."""

import itertools
import re
import shutil
from fractions import Fraction

import pytest
import yaml

from krum.errors import InputError
from krum.simulation.parameters import FIELDS, PARAMETERS, Cell, make_cell
from krum.suite import experiment, planning
from krum.suite.experiment import EXPERIMENTS

ROOT = EXPERIMENTS.parent
SPECS = experiment.load_all()
BLOCK = {"dataset": "spambase", "aggregator": "krum", "attack": "gaussian", "byzantine_fraction": 0.33}
GOOD = {"title": "t", "claim": "c", "grid": [BLOCK], "figure": {"kind": "curves"}}


@pytest.fixture
def folder(tmp_path):
    shutil.copy(EXPERIMENTS / "fidelity.yaml", tmp_path)
    return tmp_path


def write(folder, **changes):
    """A good experiment with changes; `...` leaves a key out."""
    document = {**GOOD, **changes}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not ...}))
    return path


def block(**changes):
    return {"grid": [{key: value for key, value in {**BLOCK, **changes}.items() if value is not ...}]}


def refusal(path, *arguments):
    with pytest.raises(InputError) as caught:
        experiment.load(path, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_PARAMETERS = [
    ({"aggregator": "krun"}, "unknown aggregator 'krun'; did you mean 'krum'?"),
    ({"attack": "gausian"}, "unknown attack 'gausian'; did you mean 'gaussian'?"),
    ({"dataset": "mnits"}, "unknown data set 'mnits'; did you mean 'mnist'?"),
    ({"model": {"name": "mpl", "hidden": [3]}}, "unknown model 'mpl'; did you mean 'mlp'?"),
    ({"bach_size": 3}, "unknown parameter 'bach_size'; did you mean 'batch_size'?"),
    ({"aggregator": {"name": "krum", "m": 3}}, "krum: unknown option 'm'"),
    ({"aggregator": {"name": "multi-krum", "m": 21}}, "m = 21 of n = 20"),
    ({"aggregator": {"name": "multi-krum", "m": 1.5}}, "option m: found 1.5"),
    ({"aggregator": {"name": "1-p-krum", "coin": 0.5}}, "1-p-krum: unknown option 'coin'"),
    ({"attack": {"name": "gaussian", "standard_deviation": -1}}, "found -1; give a positive"),
    ({"attack": {"name": "gaussian", "standard_deviation": "big"}}, "found 'big'"),
    ({"model": "mlp"}, "model mlp: option hidden is missing"),
    ({"model": {"name": "mlp", "hidden": [10, 0]}}, "found (10, 0)"),
    ({"model": {"name": "mlp", "hidden": [10**9]}}, "mlp has 60,000,000,002 parameters"),
    ({"model": "convnet"}, "convnet takes square images; found 57 features"),
    ({"dataset": "mnist", "model": {"name": "convnet", "kernel": 29}}, "the map is 28 wide, less than the kernel's 29"),
    ({"aggregator": 3}, "aggregator: found 3; give a name"),
    ({"aggregator": {"m": 3}}, "aggregator: found {'m': 3}; give a name, or a mapping with a name"),
    ({"attack": None}, "attack: found None"),
    ({"dataset": ...}, "dataset is missing"),
    ({"aggregator": ...}, "aggregator is missing"),
    *(({"workers": value}, f"workers: found {value!r}; give an integer, at least 1") for value in (0, -2, "x", 20.5)),
    ({"workers": True}, "workers: found True"),
    ({"workers": 1e30}, "workers: found 1e+30"),
    ({"batch_size": 4141}, "batch_size: found 4141; a fold of spambase trains on 4140 samples"),
    ({"folds": 1}, "folds: found 1"),
    ({"learning_rate": 0}, "learning_rate: found 0; give a number, above 0"),
    *(({"learning_rate": value}, "learning_rate: found ") for value in (float("nan"), float("inf"), 10**400)),
    ({"learning_rate": "fast"}, "learning_rate: found 'fast'"),
    ({"byzantine_fraction": 1}, "byzantine_fraction: found 1"),
    ({"byzantine_fraction": "33 %"}, "byzantine_fraction: found '33 %'"),
    ({"batch_size": [3, "x"]}, "batch_size: found 'x'"),
    ({"byzantine_fraction": 0.45}, "needs 2f + 2 < n: found n = 20, f = 9"),
    ({"declared_f": 9}, "f at most 8, or say outside_guarantee: true"),
    ({"declared_f": 20}, "f is an integer from 0 to n - 1"),
    ({"attack": "barycentre-collusion", "byzantine_fraction": 0.05}, "found 1 Byzantine workers; give at least 2"),
    ({"fault_rate": 0.3}, "fault_rate: found 0.3 beside a byzantine_fraction"),
    ({"fault_rate": 0.3, "byzantine_fraction": 0, "attack": "stale"}, "several rounds; give another attack"),
    ({"byzantine": 6}, "byzantine: found 6 beside a byzantine_fraction; give one of them"),
    ({"byzantine": 20, "byzantine_fraction": ...}, "byzantine: found 20 of 20 workers"),
    ({"byzantine_fraction": ...}, "attack gaussian: found nobody; give byzantine, byzantine_fraction or fault_rate"),
    ({"byzantine_fraction": 0.04}, "attack gaussian: found a share of 0.04 among 20 workers; give byzantine"),
    ({"byzantine_fraction": 0.04, "fault_rate": 0}, "found a share of 0.04 among 20 workers"),
    ({"attack": "alia"}, "did you mean 'a-little-is-enough'?"),
    ({"points": 10}, "spambase holds no images to deform"),
    ({"compare_with": "median"}, "must both choose by distances"),
    ({"compare_with": "1-p-krum"}, "1-p-krum depends on chance"),
    ({"measure_gradient": "please"}, "measure_gradient: found 'please'"),
]
BAD_DOCUMENTS = [
    ({"titel": "x"}, "unknown key 'titel'; did you mean 'title'?"),
    ({"title": ...}, "title is missing"),
    ({"title": ""}, "title: found ''"),
    ({"grid": ...}, "nothing to run; give a grid of training runs, or probes"),
    ({"grid": []}, "grid: found []"),
    ({"grid": {"dataset": "mnist"}}, "grid: found"),
    ({"grid": [{}]}, "grid[0]: found {}"),
    (block(batch_size=[]), "grid[0].batch_size: found []; give a value, or a list with at least one"),
    ({"figure": ...}, "figure is missing"),
    ({"figure": {"kind": "curves", "reference": {"aggregator": "average"}}}, "'average' has no unattacked curve"),
    ({"parameters": {"round": 10}}, "parameters: unknown parameter 'round'; did you mean 'rounds'?"),
    ({"fidelity": {"seeds": "ours"}}, "fidelity.seeds: found 'ours'"),
    ({"part": "appendix"}, "part: found 'appendix'; give paper, supplement, beyond or review"),
    ({"outside_guarantee": "yes, please"}, "outside_guarantee: found 'yes, please'"),
    ({**block(declared_f=18), "outside_guarantee": True}, "n - f - 2 >= 1"),
    ({"probes": [{"name": "plain"}]}, "probes[0]: unknown probe 'plain'; did you mean 'plane'?"),
    ({"probes": [{"workers": 3}]}, "probes[0]: name is missing"),
    ({"probes": [{"name": "plane", "seeds": 0}]}, "probes[0]: seeds: found 0"),
    ({"probes": [{"name": "choices", "byzantine": 30}]}, "probes[0]: byzantine: found 30 of 20 workers"),
    ({"probes": [{"name": "timing", "dimension": 10**14}]}, "probes[0]: dimension: found 100,000,000,000,000"),
]
BAD_TEXTS = [
    ("title: [", "not valid YAML"),
    ("- a", "found ['a']; give an experiment with title"),
    ("title: a\ntitle: b", "key 'title' is given twice"),
    ("1: a", "key 1 is not a text"),
    ("title: 2001-01-01", "found a timestamp; a text needs quotes"),
    ("title: {a: [!!set {b}]}", "found a set"),
    ("title: !!binary aaaa", "found a binary"),
    ("title: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ("[" * 3000, "not valid YAML"),
    ("\udcff", "not valid YAML"),
]


def test_bad_experiments_are_refused_in_one_line_that_names_the_file(folder, count):
    for changes, words in BAD_PARAMETERS:
        message = refusal(path := write(folder, **block(**changes)))
        assert message.startswith(f"{path}: grid[0]: ") and words in message
    for changes, words in BAD_DOCUMENTS:
        message = refusal(write(folder, **changes))
        assert message.startswith(f"{path}: ") and words in message
    for text, words in BAD_TEXTS:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert words in refusal(path)
    for name in ("Figure 7", "a+b", "-x"):
        assert "the file's name names the experiment" in refusal(write(folder).rename(folder / f"{name}.yaml"))
    assert "cannot be read" in refusal(folder / "none.yaml")
    assert "overrides: unknown parameter 'round'" in refusal(write(folder), {"round": 3})
    count("bad inputs refused in one line", len(BAD_PARAMETERS) + len(BAD_DOCUMENTS) + len(BAD_TEXTS) + 7)


def test_bad_configuration_is_refused(count):
    cases = [
        ({"devise": "cpu"}, "unknown key 'devise'; did you mean 'device'?"),
        ({"device": "gpu"}, "device: found 'gpu'; give auto, cpu or cuda"),
        ({"results": 3}, "results: found 3; give a folder"),
        ({"overrides": {"rounds": -1}}, "overrides: rounds: found -1"),
        ({"overrides": None}, "overrides: found None; give a mapping"),
        ({"figures": ""}, "figures: found ''; give a folder"),
    ]
    for config, words in cases:
        with pytest.raises(InputError, match=re.escape(words)):
            planning.plan(ROOT, config)
    count("bad inputs refused in one line", len(cases))


# --------------------------------------------------------------------------------------------------- what is allowed


def test_every_field_of_a_cell_says_what_it_is():
    assert all(FIELDS[name].metadata["description"] for name in PARAMETERS)
    assert set(FIELDS) - set(PARAMETERS) == {"model_options", "aggregator_options", "attack_options"}


def test_defaults_are_the_fields_and_the_data_sets(folder):
    cell = make_cell({"dataset": "mnist", "aggregator": "krum"})
    assert (cell.workers, cell.batch_size, cell.learning_rate, cell.rounds, cell.seeds) == (20, 3, 0.1, 500, 10)
    assert (cell.model, dict(cell.model_options)) == ("mlp", {"hidden": (100,)})
    assert dict(make_cell({"dataset": "spambase", "aggregator": "krum"}).model_options) == {"hidden": (100, 100)}


def test_outside_guarantee_is_allowed_where_the_experiment_says_so(folder):
    (cell,) = experiment.load(write(folder, **block(byzantine_fraction=0.45), outside_guarantee=True)).cells
    assert cell.byzantine == cell.declared_f == 9 and cell.outside_guarantee
    (inside,) = experiment.load(write(folder)).cells
    assert not inside.outside_guarantee


def test_counts_are_floors_of_the_decimal_fraction():
    for percent in range(100):
        for workers in (20, 100):
            parameters = {**BLOCK, "aggregator": "average", "workers": workers, "byzantine_fraction": percent / 100}
            if percent and not (expected := int(Fraction(percent, 100) * workers)):
                with pytest.raises(InputError, match=r"found a share of 0\.0"):
                    make_cell(parameters)
            else:
                assert make_cell(parameters).byzantine == (expected if percent else 0)


def test_a_count_is_the_share_that_it_is(folder):
    counted = experiment.load(write(folder, **block(byzantine=[0, 6], byzantine_fraction=...)))
    shared = experiment.load(write(folder, **block(byzantine_fraction=[0, 0.3])))
    assert counted.cells == shared.cells
    assert [(cell.attack, cell.byzantine, cell.declared_f) for cell in counted.cells] == [
        ("none", 0, 6),
        ("gaussian", 6, 6),
    ]


def test_a_zero_that_is_said_means_none(folder):
    for who in ("byzantine", "byzantine_fraction", "fault_rate"):
        (cell,) = experiment.load(write(folder, **block(**{"byzantine_fraction": ..., who: 0}))).cells
        assert (cell.attack, cell.byzantine, cell.byzantine_fraction, cell.fault_rate) == ("none", 0, 0.0, 0.0)


def test_synonyms_are_what_they_stand_for(folder):
    names = {
        "aggregator": [("MultiKrum", "multi-krum"), ("rfa", "geometric-median")],
        "attack": [("ALIE", "a-little-is-enough")],
        "compare_with": [("Krum", "krum")],
        "dataset": [("spambase_log", "spambase-log")],
        "model": [({"name": "MLP", "hidden": [3]}, {"name": "mlp", "hidden": [3]})],
    }
    figure = {"kind": "sweep", "x": "batch_size", "quantities": ["test_error"], "crossing": "Multi_Krum"}
    for name, pairs in names.items():
        for given, meant in pairs:
            assert experiment.load(write(folder, **block(**{name: given}))).cells == (
                experiment.load(write(folder, **block(**{name: meant}))).cells
            )
    spec = experiment.load(write(folder, **block(aggregator=["krum", "multi_krum"]), figure=figure))
    assert spec.figure["crossing"] == "multi-krum"
    (probe,) = experiment.load(
        write(
            folder,
            grid=...,
            figure={"kind": "complexity"},
            probes=[{"name": "Timing", "aggregator": "cwmed", "workers": 5, "dimension": 10}],
        )
    ).probes
    assert (probe.name, dict(probe.options)["aggregator"]) == ("timing", "median")


def test_declared_f_is_the_most_of_the_experiment(folder):
    cells = experiment.load(write(folder, **block(attack=["none", "gaussian"]))).cells
    assert [(cell.attack, cell.byzantine, cell.byzantine_fraction, cell.declared_f) for cell in cells] == [
        ("none", 0, 0.0, 6),
        ("gaussian", 6, 0.33, 6),
    ]


def test_lists_are_products_without_repetitions_and_overrides_win(folder):
    path = write(folder, **block(batch_size=[3, 3, 5], attack=["none", "gaussian"], seeds=[1, 2]))
    assert len(experiment.load(path).cells) == 8
    assert {cell.seeds for cell in experiment.load(path, {"seeds": 4}).cells} == {4}


def test_numbers_may_be_written_in_several_ways(folder):
    path = write(folder, **block(workers=20.0))
    path.write_text(path.read_text().replace("byzantine_fraction:", "learning_rate: 1e-1\n  byzantine_fraction:"))
    (cell,) = experiment.load(path).cells
    assert isinstance(cell.workers, int) and cell.learning_rate == 0.1
    assert cell.slug == experiment.load(write(folder)).cells[0].slug


def test_cells_survive_their_text():
    assert all(Cell.from_json(cell.to_json()) == cell for spec in SPECS.values() for cell in spec.cells)


def test_names_of_results_stay():
    """A cell's file name is a hash of all of it: whoever changes a field renames every result, and should know."""
    known = {"spambase_krum_none_deef1d7e9f", "spambase_krum_6-gaussian_2cd197fb67"}
    assert {cell.slug for cell in SPECS["figure4"].cells} >= known


def test_figures_4_and_6_are_the_papers():
    figure4, figure6 = SPECS["figure4"].cells, SPECS["figure6"].cells
    for cell in figure4 + figure6:
        assert (cell.workers, cell.batch_size, cell.rounds, cell.seeds, cell.folds) == (20, 3, 500, 10, 10)
        assert (cell.attack, cell.byzantine) in [("none", 0), ("gaussian", 6)] and cell.declared_f == 6
    datasets = ("spambase", "mnist")
    assert {(c.dataset, c.aggregator, c.byzantine) for c in figure4} == {
        (d, a, f) for d in datasets for a in ("average", "krum") for f in (0, 6)
    }
    rules = [("average", 0), ("krum", 0), ("krum", 6), ("multi-krum", 0), ("multi-krum", 6)]
    assert {(c.dataset, c.aggregator, c.byzantine) for c in figure6} == {(d, *rule) for d in datasets for rule in rules}
    assert len(set(figure4) | set(figure6)) == 12, "shared cells exist once"


def test_figure_5_is_the_papers_and_has_a_variant_within_the_theorem():
    cells = SPECS["figure5"].cells
    papers = [cell for cell in cells if cell.workers == 20]
    assert sorted((cell.dataset, cell.aggregator, cell.byzantine, cell.batch_size) for cell in papers) == [
        *itertools.product(("mnist", "spambase"), ("average", "krum"), (0, 9), (3, 5, 10, 20, 30, 50, 100))
    ]
    assert all(cell.outside_guarantee == (cell.aggregator == "krum") for cell in papers)
    variant = [cell for cell in cells if cell.workers == 40]
    assert variant and all(cell.byzantine == cell.declared_f == 18 and not cell.outside_guarantee for cell in variant)


def test_the_other_experiments_hold_what_they_are_for():
    rules = ("average", "krum", "multi-krum", "medoid", "1-p-krum", "geometric-median")
    assert {(c.dataset, c.aggregator, c.attack) for c in SPECS["variants"].cells} == {
        (d, a, t) for d in ("spambase", "mnist") for a in rules for t in ("none", "gaussian", "omniscient")
    }
    assert {c.learning_rate for c in SPECS["sensitivity"].cells} == {0.03, 0.1, 0.3}
    assert len({c.aggregator for c in SPECS["implementations"].cells}) == 5
    assert {c.batch_size for c in SPECS["figure3"].cells if c.measure_gradient} == {3, 20, 100}
    for spec in SPECS.values():
        assert spec.part == "review" or {cell.seeds for cell in spec.cells} <= {10}, "ten seeds, one per fold"
