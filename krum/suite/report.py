"""Words and tables from results: a figure's setting, its caption, the scorecard, docs/fidelity.md. No drawing."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krum.errors import InputError
from krum.suite import store
from krum.suite.experiment import Experiment

if TYPE_CHECKING:
    import pandas as pd

TITLES = {"spambase": "Spambase", "spambase-log": "Spambase (log features)", "mnist": "MNIST"}
SOURCES = {
    "paper": "the paper",
    "supplement": "its supplement",
    "review": "the review",
    "ours": "ours",
}
MARKS = {"holds": "✔", "fails": "✘", "undecided": "?"}


def setting(rows: "pd.DataFrame") -> str:
    """What ran, on how many seeds, and what the bands are, in two or three lines."""
    parts = []
    training = rows[rows["measurement"] == store.TRAINING]
    if len(training):

        def values(column: str) -> str:
            return ", ".join(f"{value:g}" for value in sorted(training[column].unique()))

        pairs = training[["dataset", "model"]].drop_duplicates().itertuples(index=False)
        models = ", ".join(f"{TITLES.get(pair.dataset, pair.dataset)} {pair.model}" for pair in pairs)
        parts.append(
            f"{values('workers')} workers, batch {values('batch_size')}, learning rate {values('learning_rate')}, "
            f"declared f = {values('declared_f')}; {models}"
        )
    for measurement, own in rows.groupby("measurement", sort=False):
        each = own.groupby("cell")["seed"].nunique() if measurement == store.TRAINING else own[["seed"]].nunique()
        seeds, fewest = int(each.max()), int(each.min())
        name = "" if len(own) == len(rows) else f"{measurement}: "
        folds = ", each with its own cross-validation fold" if measurement == store.TRAINING else ""
        many = str(seeds) if fewest == seeds else f"{fewest} to {seeds}"
        band = " and 95 % bootstrap band" if seeds > 1 else ""
        parts.append(f"{name}mean{band} over {many} seed{'s' if seeds > 1 else ''}{folds}")
    return "\n".join(parts)


def captions(
    experiments: Mapping[str, Experiment], results: Mapping[str, "pd.DataFrame"], scorecard: "pd.DataFrame"
) -> dict[str, str]:
    """Captions in reStructuredText, one per experiment (what is claimed, setting, seeds, verdicts), and the tally."""
    texts = {"scorecard": tally(scorecard)}
    for name, rows in results.items():
        spec = experiments[name]
        lines = [f"**{spec.title}**", "", f"Claimed: {' '.join(spec.claim.split())}", ""]
        lines += [" ".join(setting(rows).split()) + ".", ""]
        if spec.figure.get("note"):
            lines += [" ".join(spec.figure["note"].split()), ""]
        for row in scorecard[scorecard["experiment"] == name].itertuples():
            found = f"{row.quantity} {interval(row)}"
            lines.append(f"- **{row.verdict}**: {row.sentence} ({found}; to hold: {row.test}{_where(row)})")
        texts[name] = "\n".join(lines) + "\n"
    return texts


def interval(row: Any) -> str:
    """Value and interval of a row of the scorecard."""
    return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def number(value: float) -> str:
    """Two or three significant digits, without an exponent where that is short."""
    if value != value:
        return "-"
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "-∞"
    if abs(value) < ROUNDING:
        return "0"
    if abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.3f}".rstrip("0").rstrip(".")


def tally(scorecard: "pd.DataFrame") -> str:
    """How many claims hold, fail and are undecided, in a line."""
    count = scorecard["verdict"].value_counts()
    return (
        f"{len(scorecard)} claims: {count.get('holds', 0)} hold, {count.get('fails', 0)} fail, "
        f"{count.get('undecided', 0)} undecided."
    )


def markdown(scorecard: "pd.DataFrame") -> str:
    """The scorecard as a Markdown table."""
    lines = [tally(scorecard), "", "| | claim | measured | verdict |", "|---|---|---|---|"]
    for row in scorecard.itertuples():
        what = _escaped(f"{row.quantity}: {interval(row)}; holds if {row.test}{_where(row)}")
        who = f"{row.experiment}, {SOURCES[row.source]}"
        lines.append(f"| {who} | {_escaped(row.sentence)} | {what} | {MARKS[row.verdict]} {row.verdict} |")
    return "\n".join(lines) + "\n"


def short_markdown(scorecard: "pd.DataFrame") -> str:
    """The tally, and the claims of the paper and its supplement as a narrow table."""
    lines = [tally(scorecard) + " The paper's and its supplement's:", "", "| | claim | measured | verdict |"]
    lines.append("|---|---|---|---|")
    for row in scorecard[scorecard["source"].isin(("paper", "supplement"))].itertuples():
        verdict = f"{MARKS[row.verdict]} {row.verdict}"
        lines.append(f"| {row.experiment} | {_escaped(row.sentence)} | {interval(row)} | {verdict} |")
    return "\n".join(lines) + "\n"


def page(scorecard: "pd.DataFrame") -> str:
    """The scorecard as an HTML page of its own."""
    rows = []
    for row in scorecard.itertuples():
        cells = [
            row.experiment,
            SOURCES[row.source],
            row.sentence,
            row.quantity + _where(row),
            interval(row),
            row.test,
            str(row.seeds),
        ]
        plain = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr>{plain}<td class="{row.verdict}">{MARKS[row.verdict]}&nbsp;{row.verdict}</td></tr>')
    head = "".join(
        f"<th>{name}</th>"
        for name in ("figure", "by", "claim", "quantity", "value [95 % interval]", "holds if", "seeds", "verdict")
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Scorecard</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; padding: 0.35em 0.7em; border-bottom: 1px solid #ddd }}
th {{ position: sticky; top: 0; background: #f4f4f4 }}
td:nth-child(5) {{ white-space: nowrap; font-variant-numeric: tabular-nums }}
.holds {{ color: #00684b; font-weight: 600 }} .fails {{ color: #b32400; font-weight: 600 }}
.undecided {{ color: #7a5c00; font-weight: 600 }}
</style></head><body>
<h1>Scorecard</h1>
<p>{tally(scorecard)} A claim holds or fails when the whole interval lies on one side of its threshold, and is
undecided otherwise. Intervals: 95 %, percentile bootstrap over seeds; in training runs, each seed holds out a
cross-validation fold of its own.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table></body></html>
"""


BEGIN, END = "<!-- scorecard: `make gallery` writes this -->", "<!-- end of the scorecard -->"
ROUNDING = 1e-12  # what floating-point sums leave of zero
GALLERY_WIDTH = 1600  # pixels


def gallery(
    experiments: Mapping[str, Experiment],
    scorecard: "pd.DataFrame",
    texts: Mapping[str, str],
    figures: Path,
    root: Path,
) -> None:
    """Write docs/: every figure, gallery.md, scorecard.md; and the scorecard's part of README.md. From a full run.

    Raises InputError where README.md has no place for it.
    """
    pages = [
        "# Gallery",
        "",
        "Every figure of a full run, written by `make gallery`. Verdicts: [scorecard](scorecard.md).",
    ]
    for spec in in_order(experiments):
        name = spec.name
        copy_figure(name, figures, root, "make")
        bullets = [line.replace("<", "&lt;") for line in texts.get(name, "").splitlines() if line.startswith("- ")]
        pages += ["", f"## {spec.title}", "", f"![{name}](figures/{name}.png)", "", " ".join(spec.claim.split()), ""]
        pages += bullets
    readme = root / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{readme}: the lines {BEGIN!r} and {END!r} are not there; put them where the scorecard goes")
    written = {
        root / "docs" / "gallery.md": "\n".join(pages) + "\n",
        root / "docs" / "scorecard.md": "# Scorecard\n\n" + markdown(scorecard),
        readme: f"{before}{BEGIN}\n{short_markdown(scorecard)}{END}{after}",
    }
    for path, text in written.items():
        with store.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def copy_figure(name: str, figures: Path, root: Path, command: str) -> None:
    """A figure into docs/figures, small enough for a repository. Raises InputError where it is missing."""
    from PIL import Image

    source = figures / f"{name}.png"
    if not source.exists():
        raise InputError(f"{source}: not found; build every figure with `{command}` first")
    picture = Image.open(source).convert("RGB")
    picture.thumbnail((GALLERY_WIDTH, 4 * GALLERY_WIDTH), Image.Resampling.LANCZOS)
    with store.replacing(root / "docs" / "figures" / f"{name}.png") as temporary:
        picture.quantize(128).save(temporary, optimize=True)


def answers(template: str, scorecard: "pd.DataFrame", tables: Mapping[str, str] | None = None) -> str:
    """docs/review.md: the template with every {claim} replaced by its value, interval and verdict.

    `tables` holds what stands for names that are no claims. Raises InputError for a name that is neither.
    """
    found = {row.claim: f"{interval(row)} ({MARKS[row.verdict]} {row.verdict})" for row in scorecard.itertuples()}
    found.update({"tally": tally(scorecard), **(tables or {})})
    names = set(re.findall(r"{([a-z0-9-]+)}", template))
    if names - set(found):
        raise InputError(
            f"docs/review.in.md: no claim {', '.join(sorted(names - set(found)))} on the review's scorecard"
        )
    return re.sub(r"{([a-z0-9-]+)}", lambda name: found[name[1]], template)


def occurrence(row: Any) -> str:
    """Who misbehaves, and how often, in a cell's row."""
    if row.fault_rate:
        return f"anyone, 1 in {1 / row.fault_rate:,.0f} rounds"
    return f"{row.byzantine} of {row.workers}, always" if row.byzantine else "nobody"


def with_occurrence(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows with `occurrence` in words, and the `share` of all workers' rounds that it spoils."""
    return rows.assign(
        share=rows["fault_rate"].where(rows["fault_rate"] > 0, rows["byzantine"] / rows["workers"]),
        occurrence=[occurrence(row) for row in rows.itertuples()],
    )


SURVIVES = 0.05  # a fault that raises the error by less is survived


def survival(rows: "pd.DataFrame") -> str:
    """Which rule survives which fault, and how much of it: a Markdown table.

    A mark for each occurrence, from the rarest on: the error at the last round rises above that of the same rule
    without faults by less than SURVIVES, by more, or undecided, by the 95 % interval over seeds.
    """
    from krum.suite.statistics import band

    rows = store.of_measurement(rows)
    final = rows[(rows["round"] == rows["rounds"]) & (rows["workers"] > 1)]
    final = with_occurrence(final).sort_values("share", kind="stable")
    calm, faulty = final[final["attack"] == "none"], final[final["attack"] != "none"]
    rules = list(rows["aggregator"].drop_duplicates())
    lines = [f"| fault | how often | {' | '.join(rules)} |", "|---|---|" + "---|" * len(rules)]
    for attack, of_attack in faulty.groupby("attack", sort=False):
        occurrences = list(of_attack["occurrence"].drop_duplicates())
        marks = []
        for rule in rules:
            without = calm[calm["aggregator"] == rule].set_index("seed")["test_error"]
            own = of_attack[of_attack["aggregator"] == rule]
            found = ""
            for name in occurrences:
                rise = own[own["occurrence"] == name].set_index("seed")["test_error"] - without
                _, low, high = (float(end) for end in band(rise.dropna().to_numpy()))
                found += MARKS["holds" if high < SURVIVES else "fails" if low > SURVIVES else "undecided"]
            marks.append(found)
        how_often = ", ".join(name.removesuffix(", always").removeprefix("anyone, ") for name in occurrences)
        lines.append(f"| {attack} | {how_often} | {' | '.join(marks)} |")
    return "\n".join(lines)


def memory(spec: Experiment, results: Path, fewest: int, most: int) -> str:
    """The greatest resident memory of the averaging cells at two numbers of points, by Snakemake's benchmark files.

    Raises InputError where they are missing.
    """
    found = {}
    for cell in spec.cells:
        if cell.aggregator == "average" and cell.workers > 1 and cell.points in (fewest, most):
            path = results / "benchmarks" / f"{cell.slug}.tsv"
            try:
                head, first = path.read_text(encoding="utf-8").splitlines()[:2]
                found[cell.points] = float(dict(zip(head.split("\t"), first.split("\t"), strict=True))["max_rss"])
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"{path}: no benchmark of a finished curve ({error}); run `make review`") from None
    few, many = found[fewest], found[most]
    return f"{few:,.0f} MB at {fewest:,} points, {many:,.0f} MB at {most:,}: {number(many / few)} times"


def _escaped(text: str) -> str:
    """As it stands, in a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _where(row: Any) -> str:
    return f" ({row.where})" if row.where else ""


def in_order(experiments: Mapping[str, Experiment]) -> list[Experiment]:
    """The paper's experiments first, then the supplement's, then those beyond."""
    parts = ("paper", "supplement", "beyond", "review")
    return sorted(experiments.values(), key=lambda spec: (parts.index(spec.part), spec.name))


def to_json(texts: Mapping[str, str]) -> str:
    """Captions as a JSON file's text."""
    return json.dumps(texts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
