# The whole dataflow: data -> curves, probes -> results -> figures and claims. One job per curve, all its seeds inside.
import json
import sys

sys.path.insert(0, workflow.basedir)

from krum.suite import planning, warm

planning.prefer_this_python()
planning.clear_stale_locks()
PLAN = planning.plan_or_exit(workflow.basedir, config)
RESULTS, FIGURES = PLAN.results, PLAN.figures
config["captions"] = PLAN.captions  # for the report


report: "docs/workflow.rst"


wildcard_constraints:
    experiment=planning.one_of(PLAN.experiments),
    probe=planning.one_of(PLAN.probes),


# On a cluster, only curves and probes are its jobs.
localrules:
    data,
    results,
    figure,
    claims,
    review_claims,
    scorecard,
    review_scorecard,


rule all:
    default_target: True
    input:
        [PLAN.figure_files(name) for name in PLAN.of_part(review=False)],
        PLAN.scorecard_files(),


rule review:
    input:
        [PLAN.figure_files(name) for name in PLAN.of_part(review=True)],
        PLAN.scorecard_files(review=True),


for name in PLAN.experiments:

    rule:
        name:
            name
        input:
            PLAN.figure_files(name),


rule data:
    output:
        "data/{dataset}.verified",
    log:
        "logs/data/{dataset}.log",
    retries: 2
    conda:
        "environment.yml"
    shell:
        "python -m krum.suite.warm data {wildcards.dataset} --output {output} > {log} 2>&1"


rule curve:
    input:
        lambda wildcards: f"data/{PLAN.cells[wildcards.curve].dataset}.verified",
    output:
        f"{RESULTS}/curves/{{curve}}.parquet",
    log:
        f"logs/{RESULTS}/{{curve}}.log",
    wildcard_constraints:
        curve=planning.one_of(PLAN.short_curves),
    conda:
        "environment.yml"
    threads: 1
    params:
        cell=lambda wildcards: PLAN.cells[wildcards.curve].to_json(),
        digest=lambda wildcards: PLAN.digest(wildcards.curve),  # a change of code runs it again
        module="krum.suite.warm",
    shell:
        "python -m {params.module} curve --cell {params.cell:q} --output {output} > {log} 2>&1"


use rule curve as long_curve with:  # begun first, so that no core waits for the last one
    benchmark:
        f"{RESULTS}/benchmarks/{{curve}}.tsv"
    wildcard_constraints:
        curve=planning.one_of(PLAN.long_curves),
    priority: 1
    params:
        cell=lambda wildcards: PLAN.cells[wildcards.curve].to_json(),
        digest=lambda wildcards: PLAN.digest(wildcards.curve),
        module="krum",  # a process of its own, whose time and memory the benchmark sees


rule probe:
    input:
        lambda wildcards: PLAN.probe_data(wildcards.probe),
    output:
        f"{RESULTS}/probes/{{probe}}.parquet",
    log:
        f"logs/{RESULTS}/{{probe}}.log",
    conda:
        "environment.yml"
    threads: lambda wildcards: PLAN.threads(wildcards.probe, workflow.cores)
    params:
        probe=lambda wildcards: PLAN.probes[wildcards.probe].to_json(),
        digest=lambda wildcards: PLAN.probe_digest(wildcards.probe),
    shell:
        "python -m krum.suite.warm probe --probe {params.probe:q} --output {output} > {log} 2>&1"


rule results:
    input:
        experiment="experiments/{experiment}.yaml",
        parts=lambda wildcards: PLAN.part_files(wildcards.experiment),
    output:
        f"{RESULTS}/{{experiment}}.parquet",
    log:
        f"logs/{RESULTS}/{{experiment}}.results.log",
    conda:
        "environment.yml"
    params:
        overrides=json.dumps(PLAN.overrides),
    shell:
        "python -m krum.suite.warm collect {input.experiment} {input.parts} --overrides {params.overrides:q}"
        " --output {output} > {log} 2>&1"


rule figure:
    input:
        f"{RESULTS}/{{experiment}}.parquet",
    output:
        report(
            f"{FIGURES}/{{experiment}}.png",
            caption="docs/caption.rst",
            category=lambda wildcards: PLAN.category(wildcards.experiment),
            labels={"figure": "{experiment}"},
        ),
        f"{FIGURES}/{{experiment}}.pdf",
    log:
        f"logs/{FIGURES}/{{experiment}}.log",
    conda:
        "environment.yml"
    params:
        stem=f"{FIGURES}/{{experiment}}",
        digest=PLAN.figure_digest("drawing", "statistics", "report", "theory"),
    shell:
        "python -m krum.suite.warm figure {input} --output {params.stem} > {log} 2>&1"


rule claims:
    input:
        claims="experiments/claims.yaml",
        results=PLAN.judged(review=False),
    output:
        claims=f"{RESULTS}/claims.parquet",
        captions=f"{RESULTS}/captions.json",
    log:
        f"logs/{RESULTS}/claims.log",
    conda:
        "environment.yml"
    params:
        digest=PLAN.figure_digest("claims", "statistics", "report", "theory"),
    shell:
        "python -m krum.suite.warm claims {input.results} --output {output.claims} --captions {output.captions} > {log} 2>&1"


use rule claims as review_claims with:
    input:
        claims="experiments/claims.yaml",
        results=PLAN.judged(review=True),
    output:
        claims=f"{RESULTS}/review.parquet",
        captions=f"{RESULTS}/review-captions.json",
    log:
        f"logs/{RESULTS}/review.log",


rule scorecard:
    input:
        rules.claims.output.claims,
    output:
        page=report(f"{FIGURES}/scorecard.html", caption="docs/scorecard.rst", category="1. Scorecard"),
        table=f"{FIGURES}/scorecard.md",
    log:
        f"logs/{FIGURES}/scorecard.log",
    conda:
        "environment.yml"
    params:
        digest=PLAN.figure_digest("report"),
    shell:
        "python -m krum.suite.warm scorecard {input} --page {output.page} --table {output.table} > {log} 2>&1"


use rule scorecard as review_scorecard with:
    input:
        rules.review_claims.output.claims,
    output:
        page=report(f"{FIGURES}/review.html", caption="docs/scorecard.rst", category="5. The review's scorecard"),
        table=f"{FIGURES}/review.md",
    log:
        f"logs/{FIGURES}/review.log",


onstart:
    planning.check_device(PLAN.device)
    planning.check_folders(RESULTS, FIGURES)
    warm.start()


onsuccess:
    print(PLAN.farewell)


onerror:
    print("Stopped. What is finished stays; the same command goes on from there.")
