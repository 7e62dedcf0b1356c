# SPDX-License-Identifier: Apache-2.0
"""The examples for Slurm and Kubernetes, run as far as possible without their schedulers."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import lance
import pytest
import yaml
from cli_support import Cli, binary, write_source
from conftest import ROOT
from moto.server import ThreadedMotoServer

SLURM = ROOT / "examples" / "slurm"
KUBERNETES = ROOT / "examples" / "kubernetes"

# What Slurm does with a batch script, at once: `--array` runs it for each index, `afterok` looks at
# how those went. Every call is noted.
SBATCH = """#!{python}
import json, os, subprocess, sys
from pathlib import Path

log = Path({log!r})
options = dict(a[2:].partition("=")[::2] for a in sys.argv[1:] if a.startswith("--"))
script = [a for a in sys.argv[1:] if not a.startswith("-")][-1]
jobs = json.loads(log.read_text()) if log.exists() else []
job = 100 + len(jobs)
after = options.get("dependency", "")
status = []
awaited = [s for j in jobs if f"afterok:{{j['job']}}" == after for s in j["status"]]
ready = not any(awaited)
first, _, last = options.get("array", "0").partition("-")
for index in range(int(first), int(last or first) + 1) if ready else []:
    slurm = {{"SLURM_JOB_ID": str(job), "SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "2048"}}
    if "array" in options:
        slurm |= {{"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(index)}}
    done = subprocess.run(["bash", script], env=os.environ | slurm, stdout=sys.stderr)
    status.append(done.returncode)
jobs.append({{"job": job, "script": Path(script).name, "options": options, "status": status}})
log.write_text(json.dumps(jobs))
print(f"{{job}};cluster" if job == 100 else job)
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Cli:
    """A folder with the binary and stubs of Slurm's commands on PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    (path / "lance-tasks").symlink_to(binary())
    stubs = {
        "sbatch": SBATCH.format(python=sys.executable, log=str(tmp_path / "slurm.json")),
        "srun": '#!/bin/sh\nexec "$@"\n',
        "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n',
    }
    for name, text in stubs.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    write_source(tmp_path)
    spec = {"operation": "write", "uri": "out.lance", "sources": ["source.parquet"]}
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"max_rows_per_file": 100}))
    return Cli(tmp_path, {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"})


def submit(slurm: Cli, **env: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    done = subprocess.run(
        ["bash", str(SLURM / "submit.sh"), "--partition=short"],
        cwd=slurm.folder,
        env={**slurm.env, "SPEC": "spec.json", "SPOOL": "spool", "SHARDS": "3", **env},
        capture_output=True,
        text=True,
    )
    log = slurm.folder / "slurm.json"
    return done, json.loads(log.read_text()) if log.exists() else []


def test_slurm_array(slurm: Cli) -> None:
    done, (array, commit) = submit(slurm)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("tasks: job 100, commit: job 101\n")
    assert (array["script"], array["status"]) == ("run.sh", [0, 0, 0])
    assert array["options"]["array"] == "0-2" and array["options"]["partition"] == "short"
    assert (commit["script"], commit["status"]) == ("commit.sh", [0])
    assert commit["options"]["dependency"] == "afterok:100"
    dataset = lance.dataset(slurm.folder / "out.lance")
    assert dataset.count_rows() == 1000 and len(dataset.get_fragments()) == 10
    # Submitted again, it finds the job committed.
    again, _ = submit(slurm)
    assert again.returncode == 0, again.stderr
    assert lance.dataset(slurm.folder / "out.lance").version == 1


def test_slurm_requeues_what_may_succeed(slurm: Cli) -> None:
    (slurm.folder / "out.lance").mkdir()
    obstacle = slurm.folder / "out.lance" / "data"
    obstacle.write_text("in the way")
    _, (array, commit) = submit(slurm, SHARDS="2")
    assert array["status"] == [75, 75] and commit["status"] == []
    requeued = (slurm.folder / "scontrol.log").read_text().split("\n")
    assert requeued == ["requeue 100_0", "requeue 100_1", ""]
    # Not for ever.
    _, jobs = submit(slurm, SHARDS="2", SLURM_RESTART_COUNT="5")
    assert jobs[2]["status"] == [75, 75]
    assert (slurm.folder / "scontrol.log").read_text().split("\n") == requeued
    obstacle.unlink()
    _, jobs = submit(slurm, SHARDS="2")
    assert jobs[4]["status"] == [0, 0] and jobs[5]["status"] == [0]
    assert lance.dataset(slurm.folder / "out.lance").count_rows() == 1000


def test_slurm_wants_a_spec(slurm: Cli) -> None:
    done, jobs = submit(slurm, SPEC="gone.json")
    assert done.returncode == 2 and "gone.json" in done.stderr and jobs == []


def test_the_spool_of_the_readme(slurm: Cli) -> None:
    """Its commands as they stand; its first block is test_readme's."""
    text = (ROOT / "README.md").read_text()
    (script,) = re.findall(r"<!-- test: shell-spool -->\n```sh\n(.*?)```", text, flags=re.DOTALL)
    (slurm.folder / "trips.csv").write_text("id\n" + "".join(f"{i}\n" for i in range(100)))
    subprocess.run(["bash", "-ec", script], cwd=slurm.folder, env=slurm.env, check=True)
    assert lance.dataset(slurm.folder / "rides.lance").count_rows() == 100


# Kubernetes


@pytest.fixture
def store() -> Iterator[dict[str, str]]:
    """An S3 with a bucket, as the environment of whoever uses it."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {"AWS_ENDPOINT": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"}
    server.stop()


class Cluster:
    """Runs the containers of the manifests' Jobs, as Kubernetes would start them."""

    def __init__(self, folder: Path, env: dict[str, str], replace: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        for file in sorted(KUBERNETES.glob("*.yaml")):
            text = file.read_text()
            for old, new in replace.items():
                text = text.replace(old, new)
            for item in yaml.safe_load_all(text):
                key = (item["kind"], item["metadata"]["name"])
                assert key not in self.objects, f"{key} is there twice"
                self.objects[key] = item

    def run(self, job: str, index: int | None = None) -> subprocess.CompletedProcess[str]:
        template = self.objects["Job", job]["spec"]["template"]["spec"]
        (container,) = template["containers"]
        env = {"PATH": os.environ["PATH"], **self.env}
        for source in container["envFrom"]:
            if "configMapRef" in source:
                env |= self.objects["ConfigMap", source["configMapRef"]["name"]]["data"]
            else:
                env |= self.objects["Secret", source["secretRef"]["name"]]["stringData"]
        if index is not None:
            env["JOB_COMPLETION_INDEX"] = str(index)
        command = [*container["command"], *container["args"]]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)


def test_kubernetes_indexed_job(tmp_path: Path, store: dict[str, str]) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    (path / "lance-tasks").symlink_to(binary())
    name, secret = f"bucket-{uuid.uuid4().hex}", f"not-for-logs-{uuid.uuid4().hex}"
    s3 = boto3.resource(
        "s3",
        endpoint_url=store["AWS_ENDPOINT"],
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
    bucket = s3.create_bucket(Bucket=name)
    for i in range(2):
        write_source(tmp_path, name=f"{i}.parquet")
        bucket.upload_file(str(tmp_path / f"{i}.parquet"), f"raw/{i}.parquet")
    env = {**store, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    replace = {"s3://bucket/": f"s3://{name}/", "replace-me": secret, "1048576": "100"}
    cluster = Cluster(tmp_path, env, replace)

    outputs = []

    def run(job: str, index: int | None = None) -> subprocess.CompletedProcess[str]:
        done = cluster.run(job, index)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout + done.stderr)
        return done

    run("trips-prepare")
    # Its pod is started again although it had succeeded.
    assert "20 tasks to run" in run("trips-prepare").stdout
    job = cluster.objects["Job", "trips-run"]["spec"]
    shards = int(cluster.objects["ConfigMap", "trips"]["data"]["SHARDS"])
    assert (job["completionMode"], job["completions"]) == ("Indexed", shards)
    for index in range(shards):
        run("trips-run", index)
    for _ in range(2):
        run("trips-commit")
    options = {
        "allow_http": "true",
        "aws_endpoint": store["AWS_ENDPOINT"],
        "aws_access_key_id": "AKIAEXAMPLE",
        "aws_secret_access_key": secret,
        "aws_region": "us-east-1",
    }
    dataset = lance.dataset(f"s3://{name}/trips.lance", storage_options=options)
    assert dataset.count_rows() == 2000 and dataset.version == 1
    assert all(secret not in output for output in outputs)


def test_kubernetes_policies_know_every_exit_code() -> None:
    """What run.yaml gives up at is what the command line calls final."""
    job = next(iter(yaml.safe_load_all((KUBERNETES / "run.yaml").read_text())))["spec"]
    (rule,) = [r for r in job["podFailurePolicy"]["rules"] if r["action"] == "FailJob"]
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 70, 77]
    # Both are what podFailurePolicy asks for.
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimitPerIndex"] > 0
