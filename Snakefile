# The whole dataflow: data -> curves, probes -> results -> figures and claims. One job per few curves, all their seeds inside.
import json
import sys

sys.path.insert(0, workflow.basedir)

from krum import planning

planning.prefer_this_python()
planning.clear_stale_locks()
PLAN = planning.plan_or_exit(workflow.basedir, config)
RESULTS, FIGURES = PLAN.results, PLAN.figures
config["captions"] = PLAN.captions  # for the report


report: "docs/workflow.rst"


wildcard_constraints:
    experiment="|".join(PLAN.experiments),
    probe="|".join(PLAN.probes) or "-",


rule all:
    default_target: True
    input:
        [PLAN.figure_files(name) for name in PLAN.experiments],
        PLAN.scorecard_files,


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
        "python -m krum data {wildcards.dataset} --output {output} > {log} 2>&1"


for sweep in PLAN.sweeps:

    rule:
        name:
            f"curves_{sweep.name}"
        input:
            f"data/{sweep.cells[0].dataset}.verified",
        output:
            sweep.files,
        log:
            f"logs/{RESULTS}/{sweep.name}.log",
        priority: sweep.priority  # the longest first, so that no core waits for the last one
        conda:
            "environment.yml"
        threads: 1
        params:
            cells=[cell.to_json() for cell in sweep.cells],
            digest=sweep.digest,  # a change of code runs it again
            device=PLAN.device,
        shell:
            "python -m krum curve --cell {params.cells:q} --device {params.device} --threads {threads}"
            " --output {output} > {log} 2>&1"


rule probe:
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
        "python -m krum probe --probe {params.probe:q} --output {output} > {log} 2>&1"


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
        "python -m krum collect {input.experiment} {input.parts} --overrides {params.overrides:q}"
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
        digest=PLAN.figure_digest("plots", "statistics", "report", "theory"),
    shell:
        "python -m krum figure {input} --output {params.stem} > {log} 2>&1"


rule claims:
    input:
        claims="experiments/claims.yaml",
        results=sorted({f"{RESULTS}/{claim.experiment}.parquet" for claim in PLAN.claims}),
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
        "python -m krum claims {input.results} --output {output.claims} --captions {output.captions} > {log} 2>&1"


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
        "python -m krum scorecard {input} --page {output.page} --table {output.table} > {log} 2>&1"


onsuccess:
    print(f"Figures: {FIGURES}/*.png and *.pdf. Results: {RESULTS}/*.parquet. Verdicts: {FIGURES}/scorecard.md.")
