"""Everything that the README prints as a command or as code works as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def block(language, containing):
    """The only block of that language with these words."""
    (text,) = (text for kind, text in BLOCKS if kind == language and containing in text)
    return text


def run(command, folder=ROOT):
    environment = {**os.environ, "PATH": PATH, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, shell=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_own_gradients_are_aggregated_as_printed(tmp_path):
    (tmp_path / "yours.py").write_text(block("python", "krum.aggregate"), encoding="utf-8")
    assert "'krum'" in run(f"{sys.executable} {tmp_path / 'yours.py'}")


def test_own_model_trains_in_five_processes_as_printed(tmp_path):
    text = block("python", "aggregate_with") + "print('trained')\ntorch.distributed.destroy_process_group()\n"
    (tmp_path / "yours.py").write_text(text, encoding="utf-8")
    printed = run(f"torchrun --standalone --nproc-per-node 5 {tmp_path / 'yours.py'}")
    assert printed.count("trained") == 5


def test_simulated_workers_train_for_real_as_printed():
    (line,) = block("bash", "krum.train").splitlines()
    errors = [float(error) for error in re.findall(r"error ([\d.]+)", run(line))]
    assert errors[-1] < errors[0] / 2


def test_a_new_rule_works_as_printed(tmp_path):
    """Pasted into the file that the README names, it can be called, and passes what is asked of every rule."""
    for name in ("krum", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    ((_, file),) = re.findall(r"One function in \[`([^`]+)`\]\(([^)]+)\)", README)
    with (tmp_path / file).open("a", encoding="utf-8") as module:
        module.write("\n\n" + block("python", "def one_centre"))
    vectors = "[[0.0], [1.0], [3.0], [9.0]]"
    call = f"import torch, krum; print(krum.aggregate(torch.tensor({vectors}), 'one-centre').item())"
    assert run(f'{sys.executable} -c "{call}"', tmp_path) == "3.0\n"
    asked = "-p no:cacheprovider -k 'source or rule or weight' tests/test_docs.py tests/test_aggregators.py"
    assert " passed" in run(f"{sys.executable} -m pytest {asked}", tmp_path)


def test_sweeps_are_planned_as_printed():
    activate, *lines = [line.partition("#")[0].strip() for line in block("bash", "snakemake figure4").splitlines()]
    assert activate == ". .venv/bin/activate"
    assert "figure4" in run(f"{lines[0]} --dry-run")
    assert len(run(lines[1]).splitlines()) > 1


def test_targets_and_links_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    printed = set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.MULTILINE))
    assert {"test", "review"} <= printed <= targets
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / link).exists(), link
