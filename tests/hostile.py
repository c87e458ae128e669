"""Vectors that no training run should meet, drawn by hypothesis, in every form that `krum.aggregate` takes."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

SIZES = (1, 2, 3, 7, 33, 100, 257, 1000, 4096, 10_000)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HONEST = (
    "normal",
    "scaled",
    "denormal",
    "zeros",
    "identical",
    "duplicates",
    "lattice",
    "offset",
    "lengths",
    "1e30",
)
BAD = ("nan", "inf", "-inf", "one nan", "one inf", "nan and inf", "1e30", "largest", "denormal", "zeros", "copy")


@dataclass(frozen=True)
class Hostile:
    """n vectors, and what was drawn to make them."""

    vectors: torch.Tensor  # [n, d]
    f: int
    honest: str
    bad: tuple[str, ...]
    form: str

    @property
    def exact(self) -> np.ndarray:
        """The vectors in float64, [n, d]."""
        return self.vectors.double().numpy()

    @property
    def finite(self) -> np.ndarray:
        """Which vectors are finite, [n]."""
        return np.isfinite(self.exact).all(1)

    def given(self):
        """What the caller passes."""
        if self.form == "numpy" and self.vectors.dtype != torch.bfloat16:
            return self.vectors.numpy()
        if self.form == "list":
            return list(self.vectors.clone())
        if self.form == "columns side by side":
            return self.vectors.T.contiguous().T
        if self.form == "models":
            cut = self.vectors.shape[1] // 3
            return [{"weight": row[cut:].clone(), "bias": row[:cut].clone()} for row in self.vectors]
        return self.vectors.clone()

    def flat(self, result) -> torch.Tensor:
        """The aggregate as one flat tensor."""
        if self.form == "models":
            return torch.cat([result["bias"], result["weight"]])
        return torch.as_tensor(result)

    def __repr__(self):
        n, d = self.vectors.shape
        return f"{n} x {d} {self.vectors.dtype}, f = {self.f}, {self.honest}, bad: {self.bad}, as {self.form}"

    def _repr_pretty_(self, printer, cycle):  # for hypothesis, in place of every number
        printer.text(repr(self))


@st.composite
def hostile(draw, most_byzantine, more_than_f=False):
    """Vectors of which at most f are bad, with f up to `most_byzantine(n)`; or more than f of them not finite."""
    n = draw(st.integers(3, 60))
    f = draw(st.integers(0, most_byzantine(n)))
    d = draw(st.sampled_from(SIZES))
    dtype = draw(st.sampled_from(DTYPES))
    honest = draw(st.sampled_from(HONEST))
    kinds = BAD[:6] if more_than_f else BAD
    number = min(f + 1, n) if more_than_f else draw(st.integers(0, f))
    bad = tuple(draw(st.sampled_from(kinds)) for _ in range(min(number, 3)))
    form = draw(st.sampled_from(("matrix", "numpy", "list", "columns side by side", "models")))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = honest_vectors(honest, n, d, dtype, rng)
    workers = rng.choice(n, size=number, replace=False)
    for place, worker in enumerate(workers):
        spoil(vectors, worker, bad[place % len(bad)], rng)
    return Hostile(vectors, f, honest, bad, form)


def honest_vectors(kind: str, n: int, d: int, dtype: torch.dtype, rng: np.random.Generator) -> torch.Tensor:
    """Finite vectors of one kind, [n, d]."""
    limits = torch.finfo(dtype)
    values = rng.normal(size=(n, d))
    if kind == "scaled":
        values *= 10.0 ** rng.integers(-4, 4) if dtype == torch.float16 else 10.0 ** rng.integers(-30, 31)
    elif kind == "denormal":
        values = rng.integers(-5, 6, size=(n, d)) * limits.smallest_normal / 2.0 ** rng.integers(1, 8)
    elif kind == "zeros":
        values = np.zeros((n, d))
    elif kind == "identical":
        values = np.tile(values[:1], (n, 1))
    elif kind == "duplicates":
        values = values[rng.integers(max(1, n // 4), size=n)]
    elif kind == "lattice":
        values = rng.integers(-3, 4, size=(n, d)) * 2.0 ** rng.integers(-8, 9)
    elif kind == "offset":
        values = 1e4 + 1e-2 * values
    elif kind == "lengths":
        values *= 10.0 ** rng.integers(-4, 4, size=(n, 1))
    elif kind == "1e30":
        values *= 1e30 if dtype != torch.float16 else 1e4
    return torch.from_numpy(np.clip(values, limits.min, limits.max)).to(dtype)


def spoil(vectors: torch.Tensor, worker: int, kind: str, rng: np.random.Generator) -> None:
    """Make one vector bad, in place."""
    limits, row = torch.finfo(vectors.dtype), vectors[worker]
    one = int(rng.integers(len(row)))
    if kind in ("nan", "inf", "-inf"):
        row[:] = float(kind)
    elif kind in ("one nan", "one inf"):
        row[one] = float(kind.removeprefix("one "))
    elif kind == "nan and inf":
        row[::2], row[1::2] = torch.nan, -torch.inf
    elif kind == "1e30":
        row[:] = 1e30
    elif kind == "largest":
        row[:] = limits.max if vectors.dtype != torch.float64 else 1e140
    elif kind == "denormal":
        row[:] = limits.smallest_normal / 4
    elif kind == "zeros":
        row[:] = 0
    elif kind == "copy":
        row[:] = vectors[int(rng.integers(len(vectors)))]
