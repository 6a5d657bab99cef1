"""The manifests of tools/kubernetes are valid, and agree with each other and with the commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from stage1.cli import main as stage1_cli
from vidshard.cli import main as vidshard_cli
from vidshard.execution.array_task import Numbering, find_task

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "kubernetes"
MANIFESTS = {
    f"{path.name}:{document['kind']}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid(name: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(MANIFESTS[name], kubernetes_validate.latest_version(), strict=True)


def command(name: str) -> list[str]:
    (container,) = MANIFESTS[name]["spec"]["template"]["spec"]["containers"]
    words: list[str] = container["command"]
    return words[2].split() if words[:2] == ["sh", "-c"] else words


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name.endswith(":Job")])
def test_a_pod_is_not_root_and_writes_to_volumes_only(name: str) -> None:
    pod = MANIFESTS[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["runAsNonRoot"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/data"} <= mounted.keys()
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    image = container["image"].partition("/")[2].partition(":")[0]
    text = (FOLDER.parent / "images" / f"{image.removeprefix('vidshard-')}.Dockerfile").read_text()
    assert f"USER {context['runAsUser']}:" in text


def test_every_pod_of_the_build_is_a_task_of_it() -> None:
    job = MANIFESTS["build.yaml:Job"]["spec"]
    words = command("build.yaml:Job")
    count = int(words[words.index("--task-count") + 1])
    assert job["completions"] == count
    assert job["parallelism"] <= count
    task = find_task(None, count, {"JOB_COMPLETION_INDEX": str(count - 1)})
    assert task is not None
    assert task.resolve(None) == (count - 1, Numbering(count=count))


@pytest.mark.parametrize(
    ("name", "group", "start"),
    [
        ("build.yaml:Job", vidshard_cli.main, "vidshard"),
        ("finalize.yaml:Job", vidshard_cli.main, "vidshard"),
        ("train.yaml:Job", stage1_cli.main, "stage1"),
    ],
)
def test_the_commands_know_their_options(name: str, group: Any, start: str) -> None:
    words = command(name)
    words = words[words.index(start) + 1 :]
    found = group.get_command(click.Context(group), words[0])
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_failed_videos_do_not_fail_the_job_that_joins_and_other_errors_do(tmp_path: Path) -> None:
    (container,) = MANIFESTS["finalize.yaml:Job"]["spec"]["template"]["spec"]["containers"]
    for code, expected in ((0, 0), (1, 1), (2, 0)):
        program = tmp_path / "vidshard"
        program.write_text(f"#!/bin/sh\nexit {code}\n")
        program.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        assert subprocess.run(container["command"], env={"PATH": path}, check=False).returncode == expected


def test_only_the_pods_of_a_training_reach_each_other() -> None:
    policy, job = MANIFESTS["train.yaml:NetworkPolicy"]["spec"], MANIFESTS["train.yaml:Job"]
    pods = {"matchLabels": {"job-name": job["metadata"]["name"]}}
    assert policy == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}],
    }


def test_the_training_finds_its_first_pod() -> None:
    service, job = MANIFESTS["train.yaml:Service"], MANIFESTS["train.yaml:Job"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:{port['port']}" in command("train.yaml:Job")
    assert f"--nnodes={job['spec']['completions']}" in command("train.yaml:Job")
