# The whole dataflow: data -> curves, probes -> results -> figures and claims. One job per curve, all its seeds inside.
# `job_server.py` is `python -m krum` without the wait for its imports.
import json
import sys

sys.path.insert(0, workflow.basedir)

from krum import job_server
from krum.suite import planning, provenance

planning.prefer_this_python()
with planning.mistakes_in_one_line():
    PLAN = planning.plan(workflow.basedir, config)
RESULTS, FIGURES, DRAWING = PLAN.results, PLAN.figures, provenance.drawing_digest()
config["captions"] = PLAN.captions  # for the report


report: "docs/workflow.rst"


wildcard_constraints:
    experiment="|".join(PLAN.experiments),


# On a cluster, only curves and probes are its jobs.
localrules:
    data,
    results,
    figure,
    claims,
    review_claims,


rule all:
    default_target: True
    input:
        PLAN.all_files(review=False),


rule review:
    input:
        PLAN.all_files(review=True),


for name in PLAN.experiments:

    rule:
        name:
            name
        input:
            multiext(f"{FIGURES}/{name}", ".png", ".pdf"),


rule data:
    output:
        "data/{dataset}.verified",
    log:
        "logs/data/{dataset}.log",
    retries: 2
    conda:
        "environment.yml"
    shell:
        "python -P krum/job_server.py data {wildcards.dataset} --output {output} > {log} 2>&1"


rule curve:
    input:
        lambda wildcards: PLAN.data_files(wildcards.curve),
    output:
        f"{RESULTS}/curves/{{curve}}.parquet",
    log:
        f"logs/{RESULTS}/{{curve}}.log",
    conda:
        "environment.yml"
    threads: 1
    params:
        cell=lambda wildcards: PLAN.measured[wildcards.curve].to_json(),
        digest=lambda wildcards: provenance.code_digest(PLAN.measured[wildcards.curve]),  # a change of code runs it again
        benchmark=f"{RESULTS}/benchmarks/{{curve}}.tsv",  # seconds and memory, by the job itself
    shell:
        "python -P krum/job_server.py curve --cell {params.cell:q} --output {output} --benchmark {params.benchmark} > {log} 2>&1"


rule probe:
    input:
        lambda wildcards: PLAN.data_files(wildcards.probe),
    output:
        f"{RESULTS}/probes/{{probe}}.parquet",
    log:
        f"logs/{RESULTS}/{{probe}}.log",
    conda:
        "environment.yml"
    threads: lambda wildcards: workflow.cores if PLAN.measured[wildcards.probe].exclusive else 1
    params:
        probe=lambda wildcards: PLAN.measured[wildcards.probe].to_json(),
        digest=lambda wildcards: provenance.code_digest(PLAN.measured[wildcards.probe]),
    shell:
        "python -P krum/job_server.py probe --probe {params.probe:q} --output {output} > {log} 2>&1"


rule results:
    input:
        experiment="experiments/{experiment}.yaml",
        measured=lambda wildcards: PLAN.measured_files(wildcards.experiment),
    output:
        f"{RESULTS}/{{experiment}}.parquet",
    log:
        f"logs/{RESULTS}/{{experiment}}.results.log",
    conda:
        "environment.yml"
    params:
        overrides=json.dumps(PLAN.overrides),
    shell:
        "python -P krum/job_server.py collect {input.experiment} {input.measured} --overrides {params.overrides:q}"
        " --output {output} > {log} 2>&1"


rule figure:
    input:
        f"{RESULTS}/{{experiment}}.parquet",
    output:
        report(
            f"{FIGURES}/{{experiment}}.png",
            caption="docs/caption.rst",
            category=lambda wildcards: planning.CATEGORIES[PLAN.experiments[wildcards.experiment].part],
            labels={"figure": "{experiment}"},
        ),
        f"{FIGURES}/{{experiment}}.pdf",
    log:
        f"logs/{FIGURES}/{{experiment}}.log",
    conda:
        "environment.yml"
    params:
        stem=f"{FIGURES}/{{experiment}}",
        digest=DRAWING,
    shell:
        "python -P krum/job_server.py figure {input} --output {params.stem} > {log} 2>&1"


rule claims:
    input:
        claims="experiments/claims.yaml",
        results=PLAN.judged_files(review=False),
    output:
        claims=f"{RESULTS}/claims.parquet",
        page=report(f"{FIGURES}/scorecard.html", caption="docs/scorecard.rst", category="1. Scorecard"),
        table=f"{FIGURES}/scorecard.md",
    log:
        f"logs/{RESULTS}/claims.log",
    conda:
        "environment.yml"
    params:
        digest=DRAWING,
    shell:
        "python -P krum/job_server.py claims {input.results} --output {output.claims} --page {output.page} > {log} 2>&1"


use rule claims as review_claims with:
    input:
        claims="experiments/claims.yaml",
        results=PLAN.judged_files(review=True),
    output:
        claims=f"{RESULTS}/review.parquet",
        page=report(f"{FIGURES}/review.html", caption="docs/scorecard.rst", category="5. The review's scorecard"),
        table=f"{FIGURES}/review.md",
    log:
        f"logs/{RESULTS}/review.log",


onstart:
    with planning.mistakes_in_one_line():
        planning.check_before_start(PLAN)
    if planning.has_job_server():
        job_server.start()


onsuccess:
    print(f"Figures: {FIGURES}/*.png and *.pdf, with the verdicts beside them. Results: {RESULTS}/*.parquet.")


onerror:
    print("Stopped. What is finished stays; the same command goes on from there.")
