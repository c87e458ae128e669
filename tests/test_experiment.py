"""What may stand in an experiment, what may not, and what one hears about it: one line, before any work."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from krum.errors import InputError
from krum.simulation.cell import Cell
from krum.suite import experiment, planning
from krum.suite.experiment import EXPERIMENTS

ROOT = EXPERIMENTS.parent

GOOD = {
    "title": "t",
    "claim": "c",
    "grid": [{"dataset": "spambase", "aggregator": "krum", "attack": "gaussian", "byzantine_fraction": 0.33}],
    "figure": {"kind": "curves"},
}


@pytest.fixture
def folder(tmp_path):
    for name in ("defaults.yaml", "schema.yaml"):
        shutil.copy(EXPERIMENTS / name, tmp_path)
    return tmp_path


def write(folder, **changes):
    document = {**GOOD, **changes}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not ...}))
    return path


def block(**changes):
    return {"grid": [{key: value for key, value in {**GOOD["grid"][0], **changes}.items() if value is not ...}]}


BAD = {
    "unknown aggregator": (block(aggregator="krun"), "grid[0]: unknown aggregator 'krun'; did you mean 'krum'?"),
    "unknown attack": (block(attack="gausian"), "grid[0]: unknown attack 'gausian'; did you mean 'gaussian'?"),
    "unknown data set": (block(dataset="mnits"), "unknown data set 'mnits'; did you mean 'mnist'?"),
    "unknown model": (block(model={"name": "mpl", "hidden": [3]}), "unknown model 'mpl'; did you mean 'mlp'?"),
    "unknown parameter": (block(bach_size=3), "grid[0]: unknown key 'bach_size'; did you mean 'batch_size'?"),
    "unknown key": ({"titel": "x"}, "mine.yaml: unknown key 'titel'; did you mean 'title'?"),
    "unknown figure kind": (
        {"figure": {"kind": "curve"}},
        "figure.kind: found 'curve'; give one of the kinds: curves, against",
    ),
    "unknown figure key": ({"figure": {"kind": "curves", "refrence": {}}}, "did you mean 'reference'?"),
    "unknown reference": (
        {"figure": {"kind": "curves", "reference": {"aggregator": "average"}}},
        "figure.reference.aggregator: 'average' has no unattacked curve in the grid",
    ),
    "unknown option": (block(aggregator={"name": "multi-krum", "n": 3}), "unknown option 'n'"),
    "option of a rule without": (block(aggregator={"name": "krum", "m": 3}), "krum: unknown option 'm'"),
    "option out of range": (block(aggregator={"name": "multi-krum", "m": 21}), "m = 21 of n = 20"),
    "option of wrong type": (block(aggregator={"name": "multi-krum", "m": 1.5}), "option m: found 1.5"),
    "attack option negative": (
        block(attack={"name": "gaussian", "standard_deviation": -1}),
        "found -1; give a positive",
    ),
    "attack option not a number": (block(attack={"name": "gaussian", "standard_deviation": "big"}), "found 'big'"),
    "attack option infinite": (block(attack={"name": "omniscient", "length": float("inf")}), "found inf"),
    "model option missing": (block(model="mlp"), "model mlp: option hidden is missing"),
    "hidden size zero": (block(model={"name": "mlp", "hidden": [10, 0]}), "found [10, 0]"),
    "hidden no list": (block(model={"name": "mlp", "hidden": 10}), "found 10"),
    "aggregator not a name": (block(aggregator=3), "grid[0].aggregator: found 3; give a name"),
    "aggregator without name": (block(aggregator={"m": 3}), "name is missing"),
    "workers zero": (block(workers=0), "grid[0].workers: found 0; give a positive integer number of workers"),
    "workers negative": (block(workers=-20), "grid[0].workers: found -20"),
    "workers a text": (block(workers="twenty"), "grid[0].workers: found 'twenty'"),
    "workers a fraction": (block(workers=20.5), "grid[0].workers: found 20.5"),
    "workers true": (block(workers=True), "grid[0].workers: found True"),
    "batch zero": (block(batch_size=0), "grid[0].batch_size: found 0"),
    "batch larger than the fold": (
        block(batch_size=4141),
        "batch_size 4141 is more than the training fold of spambase",
    ),
    "rounds zero": (block(rounds=0), "grid[0].rounds: found 0"),
    "evaluation never": (block(evaluate_every=0), "grid[0].evaluate_every: found 0"),
    "one fold": (block(folds=1), "grid[0].folds: found 1"),
    "no seeds": (block(seeds=0), "grid[0].seeds: found 0"),
    "learning rate zero": (block(learning_rate=0), "grid[0].learning_rate: found 0"),
    "learning rate a text": (block(learning_rate="fast"), "grid[0].learning_rate: found 'fast'"),
    "learning rate infinite": (block(learning_rate=float("inf")), "grid[0].learning_rate: found inf"),
    "learning rate not a number": (block(learning_rate=float("nan")), "grid[0].learning_rate: found nan"),
    "fraction negative": (block(byzantine_fraction=-0.1), "grid[0].byzantine_fraction: found -0.1"),
    "fraction one": (block(byzantine_fraction=1), "grid[0].byzantine_fraction: found 1"),
    "fraction a percentage": (block(byzantine_fraction="33 %"), "grid[0].byzantine_fraction: found '33 %'"),
    "an element of a list": (block(batch_size=[3, "x"]), "grid[0].batch_size: found 'x'"),
    "empty list": (block(batch_size=[]), "grid[0].batch_size: found an empty list"),
    "outside the guarantee": (block(byzantine_fraction=0.45), "needs 2f + 2 < n: found n = 20, f = 9"),
    "f outside the guarantee": (block(declared_f=9), "f at most 8, or say outside_guarantee: true"),
    "f beyond any meaning": ({**block(declared_f=18), "outside_guarantee": True}, "n - f - 2 >= 1"),
    "f not below n": (block(declared_f=20), "f is an integer from 0 to n - 1"),
    "more declared than sensible": (block(declared_f=-1), "grid[0].declared_f: found -1"),
    "outside_guarantee a text": ({"outside_guarantee": "yes, please"}, "outside_guarantee: found 'yes, please'"),
    "no data set": (block(dataset=...), "dataset is missing"),
    "no aggregator": (block(aggregator=...), "aggregator is missing"),
    "no title": ({"title": ...}, "mine.yaml: title is missing"),
    "empty title": ({"title": ""}, "title: found ''"),
    "no grid": ({"grid": ...}, "nothing to run; give a grid of training runs, or probes"),
    "empty grid": ({"grid": []}, "grid: found []"),
    "grid a mapping": ({"grid": {"dataset": "mnist"}}, "grid: found"),
    "empty block": ({"grid": [{}]}, "grid[0]: found {}"),
    "no figure": ({"figure": ...}, "figure is missing"),
    "number too large": (block(learning_rate=10**400), "give a number of at most 1e+30"),
    "shared number not finite": (
        {"parameters": {"learning_rate": float("nan")}},
        "parameters.learning_rate: found nan",
    ),
    "too many folds": (block(folds=4601), "grid[0].folds: found 4601"),
    "too few colluders": (
        block(attack="barycentre-collusion", byzantine_fraction=0.05),
        "attack barycentre-collusion takes at least 2 Byzantine workers; byzantine_fraction 0.05 of 20 is 1",
    ),
    "attack null": (block(attack=None), "grid[0].attack: found None"),
    "a convnet on tables": (block(model="convnet"), "convnet takes square images; found 57 features"),
    "a kernel too large": (
        block(dataset="mnist", model={"name": "convnet", "kernel": 29}),
        "the map is 28 wide, less than the kernel's 29",
    ),
    "compared with nothing": (block(compare_with="krun"), "unknown aggregator 'krun'; did you mean 'krum'?"),
    "compared with a vector rule": (block(compare_with="median"), "must both choose by distances"),
    "measure_gradient a text": (block(measure_gradient="please"), "grid[0].measure_gradient: found 'please'"),
    "fidelity without a reason": ({"fidelity": {"seeds": "ours"}}, "fidelity.seeds: found 'ours'"),
    "part unknown": ({"part": "appendix"}, "part: found 'appendix'; give paper, supplement, beyond or review"),
    "horizon negative": (block(aggregator={"name": "1-p-krum", "horizon": -5}), "option horizon: found -5"),
    "context as an option": (block(aggregator={"name": "1-p-krum", "coin": 0.5}), "1-p-krum: unknown option 'coin'"),
    "compared with chance": (block(compare_with="1-p-krum"), "1-p-krum depends on chance"),
    "no channels": (block(dataset="mnist", model={"name": "convnet", "channels": []}), "at least one convolution"),
    "against nothing": ({"figure": {"kind": "against"}}, "figure.x is missing"),
    "against a text": ({"figure": {"kind": "against", "x": "title"}}, "figure.x: unknown parameter 'title'"),
    "columns unknown": ({"figure": {"kind": "curves", "columns": "atack"}}, "did you mean 'attack'?"),
    "a kind without its probe": ({"figure": {"kind": "complexity"}}, "draws the probe 'timing'"),
    "cells without end": (
        block(**{name: list(range(1, 101)) for name in ("batch_size", "rounds", "seeds", "evaluate_every")}),
        "its lists multiply to 100,000,000 combinations; give at most 100,000",
    ),
    "workers beyond measure": (block(workers=1e30), "grid[0].workers: found 1e+30"),
    "seeds beyond measure": (block(seeds=10**12), "grid[0].seeds: found 1000000000000"),
    "a model beyond measure": (block(model={"name": "mlp", "hidden": [10**9]}), "mlp has 60,000,000,002 parameters"),
    "option beyond measure": (
        block(attack={"name": "gaussian", "standard_deviation": 10**400}),
        "give a number of at most 1e+30",
    ),
    "a probe without honest workers": (
        {"probes": [{"name": "choices", "byzantine": 30}], "figure": {"kind": "choices"}},
        "probes[0]: byzantine: found 30 of 20 workers",
    ),
    "a probe's batch beyond the data": (
        {"probes": [{"name": "choices", "batch_size": 100_000}], "figure": {"kind": "choices"}},
        "probes[0]: batch_size: found 100000",
    ),
    "a probe of too many numbers": (
        {"probes": [{"name": "timing", "dimension": 10**14}], "figure": {"kind": "complexity"}},
        "probes[0]: dimension: found 100,000,000,000,000",
    ),
    "a probe of too many processes": (
        {"probes": [{"name": "exchange", "ranks": 100_000}], "figure": {"kind": "shards"}},
        "probes[0]: ranks: found 100000; give at most 64",
    ),
    "parameters unknown": ({"parameters": {"round": 10}}, "parameters: unknown key 'round'; did you mean 'rounds'?"),
}


@pytest.mark.parametrize("changes, words", BAD.values(), ids=BAD)
def test_bad_experiments(folder, changes, words, count):
    count("bad inputs refused in one line")
    path = write(folder, **changes)
    with pytest.raises(InputError) as caught:
        experiment.load(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path)), "the file is named first"
    assert "\n" not in message


@pytest.mark.parametrize(
    "text, words",
    [
        ("title: [", "not valid YAML"),
        ("- a", "give a mapping"),
        ("", "give a mapping"),
        ("title: a\ntitle: b", "key 'title' is given twice"),
        ("1: a", "key 1 is not a text"),
        ("title: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("title: \x00", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("title: &a [*a]", "its aliases go round"),
        ("a: &a {b: *a}", "its aliases go round"),
        (
            "a: &a [x, x]\n"
            + "".join(
                f"{y}: &{y} [*{x}, *{x}]\n" for x, y in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
            ),
            "grow without end",
        ),
        ("\udcff", "not valid YAML"),
    ],
)
def test_bad_files(folder, text, words, count):
    count("bad inputs refused in one line")
    (folder / "mine.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        experiment.load(folder / "mine.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["data", "all", "Figure 7", "a+b", "-x"])
def test_bad_names(folder, name):
    path = write(folder).rename(folder / f"{name}.yaml")
    with pytest.raises(InputError, match="the file's name names the experiment"):
        experiment.load(path)


def test_missing_file(folder):
    with pytest.raises(InputError, match="cannot be read"):
        experiment.load(folder / "none.yaml")


def test_bad_overrides(folder):
    with pytest.raises(InputError, match="overrides: unknown key 'round'"):
        experiment.load(write(folder), {"round": 3})


@pytest.mark.parametrize(
    "config, words",
    [
        ({"devise": "cpu"}, "unknown key 'devise'; did you mean 'device'?"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"results": 3}, "results: found 3; give a folder"),
        ({"overrides": {"rounds": -1}}, "overrides: rounds: found -1"),
        ({"overrides": "rounds"}, "overrides: found 'rounds'"),
        ({"overrides": None}, "overrides: found None; give a mapping"),
        ({"thin": 0}, "thin: found 0"),
        ({"thin": True}, "thin: found True"),
        ({"figures": ""}, "figures: found ''; give a folder"),
    ],
)
def test_bad_configuration(config, words, count):
    count("bad inputs refused in one line")
    with pytest.raises(InputError) as caught:
        planning.plan(ROOT, config)
    assert words in str(caught.value)


def test_a_bad_experiment_stops_snakemake_with_one_line_before_any_job(tmp_path):
    for name in ("Snakefile", "environment.yml", "profiles", "krum", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "experiments").unlink()
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments")
    write(tmp_path / "experiments", **block(aggregator="krun"))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "unknown aggregator 'krun'; did you mean 'krum'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists() and not (tmp_path / "data").exists()


# --------------------------------------------------------------------------------------------------- what is allowed


def test_outside_guarantee_is_allowed_where_the_experiment_says_so_and_marked(folder):
    (cell,) = experiment.load(write(folder, **block(byzantine_fraction=0.45), outside_guarantee=True)).cells
    assert cell.byzantine == cell.declared_f == 9
    assert cell.outside_guarantee
    (inside,) = experiment.load(write(folder)).cells
    assert not inside.outside_guarantee


@pytest.mark.parametrize("fraction, workers, count", [(0.33, 20, 6), (0.45, 20, 9), (0.29, 100, 29), (0.15, 20, 3)])
def test_counts_are_floors_of_the_decimal_fraction(folder, fraction, workers, count):
    changes = block(byzantine_fraction=fraction, workers=workers, aggregator="average")
    assert experiment.load(write(folder, **changes)).cells[0].byzantine == count


def test_attack_none_has_no_byzantine_workers_and_declared_f_is_the_most_of_the_experiment(folder):
    cells = experiment.load(write(folder, **block(attack=["none", "gaussian"]))).cells
    assert [(cell.attack, cell.byzantine, cell.byzantine_fraction, cell.declared_f) for cell in cells] == [
        ("none", 0, 0.0, 6),
        ("gaussian", 6, 0.33, 6),
    ]


def test_lists_are_products_without_repetitions(folder):
    cells = experiment.load(
        write(folder, **block(batch_size=[3, 3, 5], attack=["none", "gaussian"], seeds=[1, 2]))
    ).cells
    assert len(cells) == 8


def test_scientific_notation_is_a_number(folder):
    path = write(folder)
    path.write_text(path.read_text().replace("byzantine_fraction:", "learning_rate: 1e-2\n  byzantine_fraction:"))
    assert experiment.load(path).cells[0].learning_rate == 0.01


def test_a_whole_number_may_be_written_with_a_point(folder):
    path = write(folder, **block(workers=20.0, rounds=5.0))
    (cell,) = experiment.load(path).cells
    assert (cell.workers, cell.rounds) == (20, 5)
    assert isinstance(cell.workers, int)
    (plain,) = experiment.load(write(folder, **block(workers=20, rounds=5))).cells
    assert cell.slug == plain.slug


def test_cells_survive_their_text():
    for spec in experiment.load_all().values():
        for cell in spec.cells:
            assert Cell.from_json(cell.to_json()) == cell


def test_the_papers_figures():
    """Figures 4 and 6 as the paper has them, and the cells that they share exist once."""
    specs = experiment.load_all()
    figure4, figure6 = specs["figure4"].cells, specs["figure6"].cells
    for cell in figure4 + figure6:
        assert (cell.workers, cell.batch_size, cell.rounds, cell.seeds, cell.folds) == (20, 3, 500, 10, 10)
        assert (cell.attack, cell.byzantine) in [("none", 0), ("gaussian", 6)]
        assert cell.declared_f == 6
        assert dict(cell.model_options) == {"hidden": (100, 100) if cell.dataset == "spambase" else (100,)}
    assert {(c.dataset, c.aggregator, c.byzantine) for c in figure4} == {
        (d, a, f) for d in ("spambase", "mnist") for a in ("average", "krum") for f in (0, 6)
    }
    assert {(c.dataset, c.aggregator, c.byzantine) for c in figure6} == {
        (d, a, f)
        for d in ("spambase", "mnist")
        for a, f in [("average", 0), ("krum", 0), ("krum", 6), ("multi-krum", 0), ("multi-krum", 6)]
    }
    plan = planning.plan(ROOT, {})
    assert len(set(figure4) | set(figure6)) == 12
    assert len(plan.cells) == len({cell for spec in specs.values() for cell in spec.cells})


def test_figure_5_is_the_papers_and_has_a_variant_within_the_theorem():
    cells = experiment.load_all()["figure5"].cells
    for dataset in ("spambase", "mnist"):
        for aggregator in ("average", "krum"):
            for byzantine in (0, 9):
                own = [
                    cell
                    for cell in cells
                    if (cell.dataset, cell.aggregator, cell.byzantine) == (dataset, aggregator, byzantine)
                ]
                own = [cell for cell in own if cell.workers == 20]
                assert sorted(cell.batch_size for cell in own) == [3, 5, 10, 20, 30, 50, 100]
                assert all(cell.rounds == 500 and (cell.declared_f == 9 or aggregator == "average") for cell in own)
                assert all(cell.outside_guarantee == (aggregator == "krum") for cell in own)
    variant = [cell for cell in cells if cell.workers == 40]
    assert variant and all(cell.byzantine == cell.declared_f == 18 and not cell.outside_guarantee for cell in variant)


def test_the_other_experiments_hold_what_they_are_for():
    specs = experiment.load_all()
    variants = {(c.dataset, c.aggregator, c.attack) for c in specs["variants"].cells}
    rules = ("average", "krum", "multi-krum", "medoid", "1-p-krum", "geometric-median")
    assert variants == {
        (d, a, t) for d in ("spambase", "mnist") for a in rules for t in ("none", "gaussian", "omniscient")
    }
    assert {c.learning_rate for c in specs["sensitivity"].cells} == {0.03, 0.1, 0.3}
    assert {c.dataset for c in specs["sensitivity"].cells} == {"spambase", "spambase-log", "mnist"}
    kappas = {dict(c.attack_options)["scale"] for c in specs["implementations"].cells if c.attack == "sign-flip"}
    assert min(kappas) == 0.1 and max(kappas) == 100
    assert len({c.aggregator for c in specs["implementations"].cells}) == 5
    assert {c.batch_size for c in specs["figure3"].cells if c.measure_gradient} == {3, 20, 100}
    assert {c.model for c in specs["convnet"].cells} == {"convnet"}
    for spec in specs.values():
        assert spec.part == "review" or {cell.seeds for cell in spec.cells} <= {10}, "ten seeds, one per fold"
        assert {cell.seeds for cell in spec.cells} <= {10} or "time" in spec.fidelity["seeds"]


def test_every_experiment_file_is_described():
    assert Path(EXPERIMENTS / "schema.yaml").is_file()
    schema = yaml.safe_load((EXPERIMENTS / "schema.yaml").read_text())
    for name, entry in schema["$defs"]["parameters"]["properties"].items():
        assert "description" in entry or "$ref" in entry, name
