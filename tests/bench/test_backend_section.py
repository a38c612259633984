"""The ``[backend]`` section, and the script that dask-jobqueue makes of it; no job is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import matrix
from bench.backends import cluster
from bench.backends.section import Address, LocalCluster, Slurm, read, section
from bench.guard import PROJECT

SLURM = {"kind": "slurm", "cores": 8, "memory": "48G", "walltime": "24:00:00"}
FULL = SLURM | {
    "jobs": 4,
    "gpus": 2,
    "partition": "gpu",
    "account": "vision",
    "directives": ["--constraint=a100", "--exclusive"],
    "prologue": ["module load cuda", "source /shared/venv/bin/activate"],
    "python": "/shared/venv/bin/python",
    "logs": "/shared/my logs",
}


def script(given: dict, results: Path) -> list[str]:
    return cluster.job_script(section(given), results).splitlines()


def test_a_job_script_holds_every_key(tmp_path):
    lines = script(FULL, tmp_path / "results")
    assert lines[0].startswith("#!")
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"-p gpu", "-A vision", "-n 1", "--cpus-per-task=8", "--mem=48G", "-t 24:00:00"} < set(directives)
    assert {"--gres=gpu:2", "--constraint=a100", "--exclusive", "--output='/shared/my logs/%x-%j.log'"} < set(
        directives
    )
    *before, worker = lines[lines.index("module load cuda") :]
    assert before == [*FULL["prologue"], f"export PYTHONPATH={PROJECT}${{PYTHONPATH:+:$PYTHONPATH}}"]
    assert worker.startswith("/shared/venv/bin/python -m distributed.cli.dask_worker tcp://")
    assert "--resources GPU=2" in worker and "--nthreads 8" in worker and "--memory-limit 48.00GiB" in worker
    assert not list(tmp_path.iterdir()), "to look at a script writes nothing"


def test_what_a_job_script_leaves_out(tmp_path):
    text = "\n".join(script(SLURM, tmp_path))
    assert "--gres=gpu:1" in text and "--resources GPU=1" in text
    assert "#SBATCH -p" not in text and "#SBATCH -A" not in text
    assert f"--output={tmp_path}/slurm/%x-%j.log" in text


@pytest.mark.parametrize("own", ["--gres=gpu:a100:2", "--gpus=a100:2", "-G 2", "--gpus-per-node=2"])
def test_own_directives_for_gpus_replace_ours(tmp_path, own):
    text = "\n".join(script(SLURM | {"gpus": 2, "directives": [own]}, tmp_path))
    assert f"#SBATCH {own}" in text
    assert "--gres=gpu:2" not in text
    assert "--resources GPU=2" in text


def test_jobs_without_gpus_run_cells_on_their_cores(tmp_path):
    text = "\n".join(script(SLURM | {"gpus": 0}, tmp_path))
    assert "--gres" not in text and "GPU" not in text
    assert "--resources CPU=1" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "'kind' is missing; allowed: local-cluster, address, slurm"),
        ({"kind": "slrm"}, "Did you mean 'slurm'?"),
        ({"kind": "slurm"}, "'cores' is missing; key 'memory' is missing; key 'walltime' is missing"),
        (SLURM | {"partitoin": "gpu"}, "Did you mean 'partition'?"),
        (SLURM | {"memory": "plenty"}, "write e.g. 48G"),
        (SLURM | {"walltime": "1 day"}, "write e.g. 24:00:00"),
        (SLURM | {"directives": ["#SBATCH --exclusive"]}, "without #SBATCH"),
        (SLURM | {"cores": 1, "gpus": 2}, "too few for 2 GPUs"),
        (SLURM | {"jobs": 0}, "jobs: "),
        (SLURM | {"gpus": "2"}, "gpus: "),
        ({"kind": "address"}, "'address' is missing"),
        ({"kind": "address", "address": "login1"}, "write e.g. tcp://10.0.0.1:8786"),
        ({"kind": "address", "address": "tcp://a:1", "resource": "TPU"}, "'GPU' or 'CPU'"),
        ({"kind": "local-cluster", "address": "tcp://a:1"}, "unknown key 'address'"),
        ("slurm", "is no section"),
    ],
)
def test_a_wrong_section_says_what_is_wrong(given, said):
    with pytest.raises(ValueError) as error:
        section(given)
    assert said in str(error.value)


def test_where_a_section_may_stand(tmp_path):
    own = tmp_path / "slurm.toml"
    own.write_text('[backend]\nkind = "slurm"\ncores = 8\nmemory = "48G"\nwalltime = "24:00:00"\n')
    assert read(str(own)) == Slurm(**SLURM)
    assert read("tcp://10.0.0.1:8786") == Address(kind="address", address="tcp://10.0.0.1:8786")
    whole = tmp_path / "mine.toml"
    whole.write_text(f'name = "mine"\n{own.read_text()}[[cells]]\ndatasets = ["shapes"]\nmethods = ["lora"]\n')
    changed = matrix.override(matrix.read(str(whole)), {"epochs": 3})
    assert changed.backend == Slurm(**SLURM)
    assert section({"kind": "local-cluster"}) == LocalCluster()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no file"),
        ("kind = ", "no valid TOML"),
        ('kind = "slurm"', "a section [backend] is wanted"),
        ('[backend]\nkind = "slrm"', "backend: unknown kind 'slrm'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, said):
    path = tmp_path / "slurm.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        read(str(path))
    assert said in str(error.value) and "slurm.toml" in str(error.value)


def test_a_wrong_section_of_a_matrix_file_is_told_when_it_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[backend]\nkind = "slurm"\n[[cells]]\ndatasets = ["shapes"]\nmethods = ["lora"]\n')
    with pytest.raises(matrix.MatrixError, match="mine.toml: backend: key 'cores' is missing"):
        matrix.read(str(path))
