"""Words and tables from results: captions, the scorecard, the gallery, the answers to the review."""

import html
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from krum.errors import InputError
from krum.simulation.datasets import DATASETS
from krum.suite import statistics, store
from krum.suite.experiment import Experiment
from krum.suite.figures import style
from krum.suite.figures.labels import number, setting, with_occurrence

SOURCES = {"paper": "the paper", "supplement": "its supplement", "review": "the review", "ours": "ours"}
MARKS = {"holds": "✔", "fails": "✘", "undecided": "?"}
LIMITS = """A claim holds or fails when its whole 95 % interval over seeds lies on one side of its threshold, and is
undecided otherwise. p: the least share of misses at which intervals would still decide it. † does not survive Holm's
correction for all claims of its source. Could see: half the interval, the least distance from a threshold that is
decided."""
CORRECTED = """Ten folds share training data, so that their spread understates how another sample of mails or digits
would differ. The corrected interval takes 1 / n + n_test / n_train for the 1 / n in the variance of a mean over n folds
(Nadeau and Bengio, *Inference for the generalization error*, 2003)."""
BEGIN, END = "<!-- scorecard: `make gallery` writes this -->", "<!-- end of the scorecard -->"  # its place in README.md
GALLERY_WIDTH = 1600  # pixels
SURVIVES = 0.05  # a fault that raises the error by less is survived


def captions(
    experiments: Mapping[str, Experiment], results: Mapping[str, pd.DataFrame], scorecard: pd.DataFrame
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
            measured = f"{row.quantity} {interval(row)}"
            lines.append(f"- **{row.verdict}**: {row.sentence} ({measured}; to hold: {row.test}{_where(row)})")
        texts[name] = "\n".join(lines) + "\n"
    return texts


def interval(row: Any) -> str:
    """Value and interval of a row of the scorecard."""
    return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def tally(scorecard: pd.DataFrame) -> str:
    """How many claims hold, fail and are undecided, in a line."""
    count = scorecard["verdict"].value_counts()
    return (
        f"{len(scorecard)} claims: {count.get('holds', 0)} hold, {count.get('fails', 0)} fail, "
        f"{count.get('undecided', 0)} undecided."
    )


def by_chance(scorecard: pd.DataFrame) -> str:
    """How many verdicts may be wrong by chance, and how many do not survive Holm's correction, in two sentences."""
    most = len(scorecard) * statistics.MISSES / 2  # a wrong verdict takes a miss on one side of the interval
    fragile = ((scorecard["verdict"] != "undecided") & ~scorecard["survives"]).sum()
    return (
        f"Were each of the {len(scorecard)} true means at its threshold, {number(most)} verdicts would be expected "
        f"wrong by chance. {fragile} (†) do not survive Holm's correction within their source."
    )


def verdict(row: Any) -> str:
    """The verdict of a row of the scorecard, with its mark, and † if it does not survive Holm's correction."""
    is_fragile = row.verdict != "undecided" and not row.survives
    return f"{MARKS[row.verdict]} {row.verdict}{' †' if is_fragile else ''}"


def markdown(scorecard: pd.DataFrame) -> str:
    """The scorecard as a Markdown table, and Figure 4's intervals for folds that share training data."""
    lines = [tally(scorecard), by_chance(scorecard), "", " ".join(LIMITS.split()), ""]
    lines += ["| | claim | measured | p | could see | verdict |", "|---|---|---|---|---|---|"]
    for row in scorecard.itertuples():
        what = _escaped(f"{row.quantity}: {interval(row)}; holds if {row.test}{_where(row)}")
        who = f"{row.experiment}, {SOURCES[row.source]}"
        numbers = f"{_p(row)} | {number(row.least_difference)}"
        lines.append(f"| {who} | {_escaped(row.sentence)} | {what} | {numbers} | {verdict(row)} |")
    return "\n".join(lines) + "\n" + _corrected(scorecard[scorecard["experiment"] == "figure4"])


def _corrected(scorecard: pd.DataFrame) -> str:
    """The intervals of some claims beside those corrected for folds that share training data, as a section."""
    if scorecard.empty:
        return ""
    lines = ["", "## Figure 4, for another sample of the world", "", " ".join(CORRECTED.split()), ""]
    lines += ["| claim | over our folds | corrected | holds if |", "|---|---|---|---|"]
    for row in scorecard.itertuples():
        corrected = f"[{number(row.low_corrected)}, {number(row.high_corrected)}]"
        lines.append(f"| {_escaped(row.sentence)} | {interval(row)} | {corrected} | {row.test} |")
    return "\n".join(lines) + "\n"


def short_markdown(scorecard: pd.DataFrame) -> str:
    """The tally, and the paper's own claims as a narrow table, for README.md; what differs by data set is one line."""
    lines = [f"{tally(scorecard)} The paper's own, beside [all of them](docs/scorecard.md):", ""]
    lines += ["| | claim | measured |", "|---|---|---|"]
    titles = "|".join(re.escape(style.name(dataset)) for dataset in DATASETS)
    of_paper = scorecard[scorecard["source"] == "paper"]
    words = of_paper["sentence"].str.extract(rf"(?P<claimed>.*?)(?: \((?P<dataset>{titles})\))?\.?$").fillna("")
    for (experiment, claimed), rows in of_paper.join(words).groupby(["experiment", "claimed"], sort=False):
        measured = [f"{row.dataset} {interval(row)} {verdict(row)}".strip() for row in rows.itertuples()]
        lines.append(f"| {experiment} | {_escaped(claimed)} | {'<br>'.join(measured)} |")
    return "\n".join(lines) + "\n"


def _p(row: Any) -> str:
    """A row's p in a word."""
    return "< 0.0001" if row.p < 1e-4 else f"{row.p:.2g}"


def page(scorecard: pd.DataFrame) -> str:
    """The scorecard as an HTML page of its own."""
    heads = (
        "figure",
        "by",
        "claim",
        "quantity",
        "value [95 % interval]",
        "holds if",
        "seeds",
        "p",
        "could see",
        "verdict",
    )
    rows = []
    for row in scorecard.itertuples():
        quantity = row.quantity + _where(row)
        texts = [row.experiment, SOURCES[row.source], row.sentence, quantity, interval(row), row.test, str(row.seeds)]
        texts += [_p(row), number(row.least_difference)]
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        rows.append(f'<tr>{cells}<td class="{row.verdict}">{verdict(row).replace(" ", "&nbsp;")}</td></tr>')
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
<p>{tally(scorecard)} {by_chance(scorecard)}</p>
<p>{LIMITS} In training runs, each seed holds out a cross-validation fold of its own.</p>
<table><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table></body></html>
"""


def gallery(
    experiments: Mapping[str, Experiment], scorecard: pd.DataFrame, texts: Mapping[str, str], figures: Path, root: Path
) -> None:
    """Write docs/: every figure, gallery.md, scorecard.md; and the scorecard's part of README.md. From a full run.

    Raises InputError where README.md has no place for it.
    """
    pages = "# Gallery\n\nEvery figure of a full run, written by `make gallery`. Verdicts: [scorecard](scorecard.md).\n"
    for spec in in_order(experiments):
        copy_figure(spec.name, figures, root, "make")
        bullets = [line for line in texts.get(spec.name, "").splitlines(keepends=True) if line.startswith("- ")]
        pages += f"\n## {spec.title}\n\n![{spec.name}](figures/{spec.name}.png)\n\n{' '.join(spec.claim.split())}\n\n"
        pages += "".join(bullets).replace("<", "&lt;")
    readme = root / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{readme}: the lines {BEGIN!r} and {END!r} are not there; put them where the scorecard goes")
    written = {
        root / "docs" / "gallery.md": pages,
        root / "docs" / "scorecard.md": "# Scorecard\n\n" + markdown(scorecard),
        readme: f"{before}{BEGIN}\n{short_markdown(scorecard)}{END}{after}",
    }
    for path, text in written.items():
        with store.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def copy_figure(name: str, figures: Path, root: Path, command: str) -> None:
    """A figure into docs/figures, small enough for a repository. Raises InputError where it is missing."""
    source = figures / f"{name}.png"
    if not source.exists():
        raise InputError(f"{source}: not found; build every figure with `{command}` first")
    picture = Image.open(source).convert("RGB")
    picture.thumbnail((GALLERY_WIDTH, 4 * GALLERY_WIDTH), Image.Resampling.LANCZOS)
    with store.replacing(root / "docs" / "figures" / f"{name}.png") as temporary:
        picture.quantize(128).save(temporary, optimize=True)


def answers(template: str, scorecard: pd.DataFrame, tables: Mapping[str, str] | None = None) -> str:
    """docs/review.md: the template with every {claim} replaced by its value, interval and verdict.

    `tables` holds what stands for names that are no claims. Raises InputError for a name that is neither.
    """
    texts = {row.claim: f"{interval(row)} ({verdict(row)})" for row in scorecard.itertuples()}
    texts.update({"tally": f"{tally(scorecard)} {by_chance(scorecard)}", **(tables or {})})
    strangers = sorted(set(re.findall(r"{([a-z0-9-]+)}", template)) - set(texts))
    if strangers:
        raise InputError(f"docs/review.in.md: no claim {', '.join(strangers)} on the review's scorecard")
    return re.sub(r"{([a-z0-9-]+)}", lambda name: texts[name[1]], template)


def survival(rows: pd.DataFrame) -> str:
    """Which rule survives which fault, and how much of it: a Markdown table.

    A mark for each occurrence, from the rarest on: the error at the last round rises above that of the same rule
    without faults by less than SURVIVES, by more, or undecided, by the 95 % interval over seeds.
    """
    rows = store.of_measurement(rows)
    rules = list(rows["aggregator"].drop_duplicates())
    final = with_occurrence(rows[(rows["round"] == rows["rounds"]) & (rows["workers"] > 1)])
    final = final.sort_values("share", kind="stable")
    unattacked = final[final["attack"] == "none"].set_index(["aggregator", "seed"])["test_error"]
    lines = [f"| fault | how often | {' | '.join(rules)} |", "|---|---|" + "---|" * len(rules)]
    for attack, of_attack in final[final["attack"] != "none"].groupby("attack", sort=False):
        occurrences = list(of_attack["occurrence"].drop_duplicates())
        marks = dict.fromkeys(rules, "")
        for occurrence, rule in itertools.product(occurrences, rules):
            is_shown = (of_attack["aggregator"] == rule) & (of_attack["occurrence"] == occurrence)
            rise = of_attack[is_shown].set_index("seed")["test_error"] - unattacked[rule]
            _, low, high = statistics.band(rise.dropna().to_numpy())
            marks[rule] += MARKS["holds" if high < SURVIVES else "fails" if low > SURVIVES else "undecided"]
        how_often = ", ".join(name.removesuffix(", always").removeprefix("anyone, ") for name in occurrences)
        lines.append(f"| {attack} | {how_often} | {' | '.join(marks.values())} |")
    return "\n".join(lines)


def memory(spec: Experiment, results: Path, fewest: int, most: int) -> str:
    """The greatest resident memory of the averaging cells at two numbers of points, by Snakemake's benchmark files.

    Raises InputError where they are missing.
    """
    megabytes = {}
    for cell in spec.cells:
        if cell.aggregator == "average" and cell.workers > 1 and cell.points in (fewest, most):
            path = results / "benchmarks" / f"{cell.slug}.tsv"
            try:
                megabytes[cell.points] = float(pd.read_csv(path, sep="\t")["max_rss"].iloc[0])
            except (OSError, ValueError, KeyError, IndexError) as error:
                raise InputError(f"{path}: no benchmark of a finished curve ({error}); run `make review`") from None
    few, many = megabytes[fewest], megabytes[most]
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
