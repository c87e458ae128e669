"""What `make bench` computes from its measurements; the measurements themselves are its own affair."""

import pandas as pd
import pytest
import torch

from benchmarks import aggregation, growth, measuring, peers, tenth, training


def test_numbers_have_three_digits_and_no_exponent():
    numbers = [measuring.number(value) for value in (0, 0.01234, 1.0, 12.345, 1860.4)]
    assert numbers == ["0", "0.0123", "1.00", "12.3", "1,860"]


def test_exponent_is_that_of_the_upper_half():
    assert growth.exponent([1, 10, 100, 1000, 10_000], [5.0, 5.0, 1e4, 1e6, 1e8]) == pytest.approx(2)


def test_ours_and_ten_lines_take_a_matrix_and_a_list():
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    for peer in (peers.ours, peers.ten_lines):
        assert torch.equal(peer(matrix, 5), peer(list(matrix), 5))
    assert torch.equal(peers.ours(matrix, 5), peers.ten_lines(matrix, 5))


def test_tables_compare_others_with_ours():
    names, seconds = (peers.OURS, "byzfl", "torchjd"), (1e-3, 4e-3, 2e-3)
    rows = pd.DataFrame({"n": 20, "d": 10, "implementation": names, "seconds": seconds})
    assert aggregation.speed_table(rows).splitlines()[-1].endswith("| 2.00 (2.00 - 2.00) | 2.00 |")
    rates = pd.DataFrame({"dataset": "mnist", "batch_size": 3, "package": ["byzfl", "ours"], "rate": [10.0, 250.0]})
    assert training.rate_table(rates).splitlines()[-1].endswith("| 250 (250 - 250) | 25.0x |")


def test_tenth_is_every_curve_of_make_with_a_tenth_of_its_rounds():
    cells = tenth.cells()
    assert len(cells) == len(set(cells)) > 100
    for cell in cells:
        short = tenth.tenth(cell)
        assert short.rounds == -(-cell.rounds // 10) >= short.evaluate_every and short.seeds == cell.seeds
    rows = pd.DataFrame([("mnist", "mlp", 3, 1.5), ("mnist", "mlp", 3, 2.5)], columns=[*tenth.GROUP, "seconds"])
    assert tenth.group_table(rows).splitlines()[2:] == ["| mnist | mlp | 3 | 2 | 4.00 |", "| all |  |  | 2 | 4.00 |"]
