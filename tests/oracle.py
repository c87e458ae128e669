"""The rules as loops over Python floats, transcribed from their definitions. Slow, and the judge of the fast ones.

A vector with a NaN or an infinity is infinitely far from every other; rules that compare sums over *all* others leave
it out of the others' sums, to which it would add the same infinity.
"""

import math


def squared_distance(a, b):
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += (float(x) - float(y)) * (float(x) - float(y))
    return total if math.isfinite(total) else math.inf


def is_finite(vector):
    return all(math.isfinite(float(x)) for x in vector)


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
