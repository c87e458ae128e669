"""The rules as loops over vectors, transcribed from their definitions. Slow, and the judge of the fast ones.

A vector with a NaN or an infinity is infinitely far from every other; rules that compare sums over *all* others leave
it out of the others' sums, to which it would add the same infinity.
"""

import math

import numpy as np


def squared_distance(a, b):
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.square(np.subtract(a, b, dtype=float)).sum())
    return total if math.isfinite(total) else math.inf


def is_finite(vector):
    return bool(np.isfinite(vector).all())


def krum_scores(vectors, f):
    return sums_to_nearest(vectors, len(vectors) - f - 2, float)


def sums_to_nearest(vectors, neighbours, measure):
    n = len(vectors)
    scores = []
    for i in range(n):
        distances = []
        for j in range(n):
            if j != i:
                distances.append(measure(squared_distance(vectors[i], vectors[j])))
        scores.append(sum(sorted(distances)[:neighbours]))
    return scores


def sums_to_all(vectors, measure):
    finite = [is_finite(vector) for vector in vectors]
    scores = []
    for i in range(len(vectors)):
        if not finite[i]:
            scores.append(math.inf)
            continue
        total = 0.0
        for j in range(len(vectors)):
            if j != i and finite[j]:
                total += measure(squared_distance(vectors[i], vectors[j]))
        scores.append(total)
    return scores


SCORES = {
    "krum": krum_scores,
    "multi-krum": krum_scores,
    "medoid": lambda vectors, f: sums_to_all(vectors, math.sqrt),
    "nearest-to-barycentre": lambda vectors, f: sums_to_all(vectors, float),
    "krum-n-f-1": lambda vectors, f: sums_to_nearest(vectors, len(vectors) - f - 1, float),
    "krum-n-f-1-unsquared": lambda vectors, f: sums_to_nearest(vectors, len(vectors) - f - 1, math.sqrt),
    "krum-unsquared": lambda vectors, f: sums_to_nearest(vectors, len(vectors) - f - 2, math.sqrt),
    "krum-fourth-power": lambda vectors, f: sums_to_nearest(vectors, len(vectors) - f - 2, lambda x: x * x),
}


def chosen(scores, m):
    """The indices of the m least scores; the smallest index on a tie."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:m]


def bulyan(vectors, f):
    n, left, taken = len(vectors), list(range(len(vectors))), []
    while len(taken) < n - 2 * f:
        among = [vectors[i] for i in left]
        scores = sums_to_nearest(among, max(1, len(left) - f - 2), float)
        winner = left[chosen([s if is_finite(v) else math.inf for s, v in zip(scores, among, strict=True)], 1)[0]]
        taken.append(winner)
        left.remove(winner)
    result = []
    for coordinate in range(len(vectors[0])):
        ordered = sorted(float(vectors[i][coordinate]) for i in taken)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        nearest = sorted(ordered, key=lambda value: abs(value - middle))[: n - 4 * f]
        result.append(sum(nearest) / len(nearest))
    return result


def nnm_krum(vectors, f):
    n, d = len(vectors), len(vectors[0])
    mixed = []
    for i in range(n):
        away = [squared_distance(vectors[i], vectors[j]) if j != i else -1.0 for j in range(n)]
        nearest = sorted(chosen(away, n - f))  # the same neighbours have the same mean, to the last bit
        mixed.append([sum(float(vectors[j][k]) for j in nearest) / (n - f) for k in range(d)])
    return mixed[chosen(krum_scores(mixed, f), 1)[0]]


def centred_clipping(vectors, previous, radius, iterations):
    n, v = len(vectors), [float(x) for x in previous]
    for _ in range(iterations):
        step = [0.0] * len(v)
        for vector in vectors:
            distance = math.sqrt(squared_distance(vector, v))
            if distance <= 1e7 * radius:
                factor = min(1.0, radius / distance) if distance else 1.0
                step = [s + factor * (float(x) - y) / n for s, x, y in zip(step, vector, v, strict=True)]
        v = [x + s for x, s in zip(v, step, strict=True)]
    return v
