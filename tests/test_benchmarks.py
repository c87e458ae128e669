"""What `make bench` computes from its measurements; the measurements themselves are its own affair."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import aggregation, curves, growth, page, peers
from krum.suite import experiment


def test_numbers_have_three_digits_and_no_exponent():
    assert [page.number(value) for value in (0, 0.01234, 1.0, 12.345, 1860.4)] == [
        "0",
        "0.0123",
        "1.00",
        "12.3",
        "1,860",
    ]


def test_a_fitted_exponent_is_that_of_the_upper_half():
    x = (1, 10, 100, 1000)
    seconds = np.array([[5.0, 5.0, 1e4, 1e6], [6.0, 6.0, 1.1e4, 1.1e6]])
    assert growth.Growth("n", "aggregation", x, seconds, 2).exponent() == pytest.approx((2, 2, 2))


def test_the_limit_is_memory_for_few_vectors_and_arithmetic_for_many():
    assert aggregation.limit(4, 1000, read=1e9, products=1e12) == pytest.approx(4 * 4 * 1000 / 1e9)
    assert aggregation.limit(999, 1000, read=1e12, products=1e9) == pytest.approx(999**2 * 1000 / 1e9)


def test_everybody_that_is_here_takes_a_matrix_and_a_list():
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    for peer in (peers.ours, peers.ten_lines):
        for m in (None, 14):
            assert torch.equal(peer(matrix, 5, m), peer(list(matrix), 5, m))


def test_the_table_compares_the_best_peer_with_ours():
    names, seconds = (peers.OURS, "byzfl", "torchjd"), (1e-3, 4e-3, 2e-3)
    rows = pd.DataFrame({"n": 20, "d": 10, "implementation": names, "seconds": seconds, "limit": 5e-4})
    line = aggregation.speed_table(rows).splitlines()[-1]
    assert line.endswith("| 2.00 |") and "1.00 (1.00 - 1.00) 2.0x" in line


def test_costs_per_rule_come_from_snakemakes_files(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MEASURED", tmp_path)
    assert curves.measured().empty
    cell = next(cell for spec in experiment.load_all().values() for cell in spec.cells)
    (tmp_path / f"{cell.slug}.tsv").write_text("s\tmax_rss\n60.0\t512.3\n")
    assert f"| {cell.aggregator} | 1 | 60.0 |" in curves.rules_table(curves.measured())


def test_arithmetic_of_a_curve():
    """784-100-10, 20 workers with 3 samples, 2 rounds, evaluated at 0, 1 and 2, by hand."""
    given = {"dataset": "mnist", "aggregator": "krum", "attack": "none", "declared_f": 6, "batch_size": 3}
    cell = experiment.one_cell({**given, "rounds": 2, "evaluate_every": 1, "seeds": 7})
    first, second = 784 * 100, 100 * 10
    expected = 7 * (2 * 60 * (2 * first + 3 * second) + 3 * 6000 * (first + second))
    assert curves.arithmetic(cell, 60_000) == expected


def test_a_section_is_measured_again():
    page = "# Speed\n\nfirst\n\n## One\n\nold\n\n## Two\n\ntwo\n"
    found = command.replaced(page, "## One\n\nnew\n", "command")
    assert found == page.replace("old", "Measured after the other parts, with `command`.\n\nnew")
    last = command.replaced(page, "## Two\n\nnew\n", "command")
    assert last == page.replace("two", "Measured after the other parts, with `command`.\n\nnew")
    assert command.replaced(found, "## One\n\nnew\n", "command") == found
    with pytest.raises(SystemExit, match="has no '## Three'"):
        command.replaced(page, "## Three\n", "command")
