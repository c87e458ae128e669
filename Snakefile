# The whole dataflow: data -> curves -> results -> figures. One job per curve, all its seeds inside.
import json
import sys

sys.path.insert(0, workflow.basedir)

from krum import planning

planning.prefer_this_python()
planning.clear_stale_locks()
PLAN = planning.plan_or_exit(workflow.basedir, config)
RESULTS, FIGURES = PLAN.results, PLAN.figures


wildcard_constraints:
    experiment="|".join(PLAN.experiments),
    curve="|".join(PLAN.cells),


rule all:
    default_target: True
    input:
        [PLAN.figure_files(name) for name in PLAN.experiments],


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


rule curve:
    input:
        lambda wildcards: f"data/{PLAN.cells[wildcards.curve].dataset}.verified",
    output:
        f"{RESULTS}/curves/{{curve}}.parquet",
    log:
        f"logs/{RESULTS}/{{curve}}.log",
    conda:
        "environment.yml"
    threads: 1
    params:
        cell=lambda wildcards: PLAN.cells[wildcards.curve].to_json(),
        digest=lambda wildcards: PLAN.digest(wildcards.curve),  # a change of code runs it again
        device=PLAN.device,
    shell:
        "python -m krum curve --cell {params.cell:q} --device {params.device} --threads {threads}"
        " --output {output} > {log} 2>&1"


rule results:
    input:
        experiment="experiments/{experiment}.yaml",
        curves=lambda wildcards: PLAN.curve_files(wildcards.experiment),
    output:
        f"{RESULTS}/{{experiment}}.parquet",
    log:
        f"logs/{RESULTS}/{{experiment}}.results.log",
    conda:
        "environment.yml"
    params:
        overrides=json.dumps(PLAN.overrides),
    shell:
        "python -m krum collect {input.experiment} {input.curves} --overrides {params.overrides:q}"
        " --output {output} > {log} 2>&1"


rule figure:
    input:
        f"{RESULTS}/{{experiment}}.parquet",
    output:
        f"{FIGURES}/{{experiment}}.png",
        f"{FIGURES}/{{experiment}}.pdf",
    log:
        f"logs/{FIGURES}/{{experiment}}.log",
    conda:
        "environment.yml"
    params:
        stem=f"{FIGURES}/{{experiment}}",
        digest=PLAN.plots_digest,
    shell:
        "python -m krum figure {input} --output {params.stem} > {log} 2>&1"


onsuccess:
    print(f"Figures: {FIGURES}/*.png and *.pdf. Results: {RESULTS}/*.parquet.")
