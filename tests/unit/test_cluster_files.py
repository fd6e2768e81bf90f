"""What is in `tools/cluster` is what Docker, Ray and Kubernetes take, as far as they can be asked offline."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_schema import faults
from ray.autoscaler._private.util import prepare_config, validate_config

from serl.config.load import load_experiment
from tools.cluster import wait_for_nodes

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "tools" / "cluster"
CLOUD = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text(encoding="utf-8"))
RAY_CLUSTER, POD_MONITOR, CLAIM = yaml.safe_load_all(
    (CLUSTER / "kuberay-cluster.yaml").read_text(encoding="utf-8")
)
RAY_JOB = yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text(encoding="utf-8"))


def _groups() -> list[dict[str, Any]]:
    return [RAY_CLUSTER["spec"]["headGroupSpec"], *RAY_CLUSTER["spec"]["workerGroupSpecs"]]


def _pods() -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in _groups()]


def test_ray_up_takes_the_file() -> None:
    validate_config(prepare_config(copy.deepcopy(CLOUD)))


def test_ray_up_refuses_a_key_that_it_does_not_know() -> None:
    wrong = prepare_config(copy.deepcopy(CLOUD)) | {"idle_timeout": 3}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(wrong)


def test_the_cloud_grows_to_the_greatest_number_of_every_kind_of_node() -> None:
    types = CLOUD["available_node_types"]
    workers = {name: node for name, node in types.items() if name != CLOUD["head_node_type"]}
    assert sum(node["max_workers"] for node in workers.values()) == CLOUD["max_workers"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert workers["learners"]["min_workers"] == workers["learners"]["max_workers"]


@pytest.mark.parametrize(
    "resource", [RAY_CLUSTER, POD_MONITOR, CLAIM, RAY_JOB], ids=lambda found: found["kind"]
)
def test_kubernetes_knows_every_field(resource: dict[str, Any]) -> None:
    assert faults(resource) == []


def test_a_wrong_field_a_wrong_type_and_a_wrong_value_are_found() -> None:
    wrong = copy.deepcopy(RAY_JOB)
    wrong["spec"]["backoffLimit"] = "2"
    wrong["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] = "v3"
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volume"] = []
    assert [fault.partition(":")[0] for fault in faults(wrong)] == [
        "spec.backoffLimit",
        "spec.rayClusterSpec.autoscalerOptions.version",
        "spec.rayClusterSpec.headGroupSpec.template.spec.volume",
    ]


def test_a_job_has_the_same_cluster_as_one_that_stays() -> None:
    assert RAY_JOB["spec"]["rayClusterSpec"] == RAY_CLUSTER["spec"]


def test_a_job_ends_with_its_cluster_and_is_not_tried_for_ever() -> None:
    spec = RAY_JOB["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    assert 0 < spec["backoffLimit"] <= 3 and spec["activeDeadlineSeconds"] > 0
    # The autoscaler replaces pods; a container that was restarted would be a node that Ray does not know.
    pods = [*_pods(), spec["submitterPodTemplate"]["spec"]]
    assert {pod["restartPolicy"] for pod in pods} == {"Never"}


def test_every_pod_has_shared_memory_of_its_own_and_the_shared_files() -> None:
    for pod in _pods():
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shared": "/shared", "shared-memory": "/dev/shm"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        size = volumes["shared-memory"]["emptyDir"]["sizeLimit"]
        memory = container["resources"]["limits"]["memory"]
        assert int(size.removesuffix("Gi")) <= int(memory.removesuffix("Gi")) // 2
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_version_of_ray_and_the_port_of_metrics_are_those_that_are_installed() -> None:
    pins = (ROOT / "tools" / "pins-cpu.txt").read_text(encoding="utf-8")
    assert f"\nray=={RAY_CLUSTER['spec']['rayVersion']}\n" in pins
    ports = {port["name"]: port["containerPort"] for port in _pods()[0]["containers"][0]["ports"]}
    (endpoint,) = POD_MONITOR["spec"]["podMetricsEndpoints"]
    assert endpoint["targetPort"] == ports["metrics"] == 8080
    for command in (*CLOUD["head_start_ray_commands"][1:], *CLOUD["worker_start_ray_commands"][1:]):
        assert "--metrics-export-port=8080" in command


def test_the_experiment_of_the_job_fits_the_cluster() -> None:
    words = RAY_JOB["spec"]["entrypoint"].split()
    assert words[0] == "serl-run" and words[2:4] == ["--address", "auto"]
    experiment = load_experiment(ROOT / words[1].removeprefix("/opt/serl/"))
    gpus = {
        group["groupName"]: group["maxReplicas"]
        * int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0"))
        for group in RAY_CLUSTER["spec"]["workerGroupSpecs"]
    }
    assert gpus == {"runners": 0, "serving": 4, "learners": 4}
    assert experiment.learner.num_learners * experiment.learner.num_gpus_per_learner == gpus["learners"]
    assert experiment.serving.num_replicas * experiment.serving.num_gpus_per_replica == gpus["serving"]


def _instructions() -> list[tuple[str, str]]:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


def test_the_image_is_built_of_known_instructions_and_of_files_that_there_are() -> None:
    known = {"FROM", "RUN", "ENV", "WORKDIR", "ARG", "COPY", "USER"}
    assert {instruction for instruction, _ in _instructions()} == known
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*" and [name for name in sent if not (ROOT / name).exists()] == []
    for instruction, words in _instructions():
        if instruction == "COPY":
            source = words.split()[0]
            assert source == "." or (source.split("/")[0] in sent and (ROOT / source).is_file())


def test_the_image_has_a_stage_for_processors_and_one_for_gpus_and_neither_runs_as_root() -> None:
    stages: dict[str, list[tuple[str, str]]] = {}
    for instruction, words in _instructions():
        if instruction == "FROM":
            base, _, name = words.partition(" AS ")
            assert base in stages or re.fullmatch(r"python:3\.11-slim-\w+", base)
            stages[name] = []
        else:
            stages[next(reversed(stages))].append((instruction, words))
    assert list(stages) == ["base", "cpu", "gpu"]
    for name in ("cpu", "gpu"):
        assert stages[name][-1] == ("USER", "ray")
    uid = RAY_CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert any(f"--uid {uid} " in words for _, words in stages["base"])


def test_every_file_has_a_page_with_what_to_edit_what_it_costs_and_what_was_never_run() -> None:
    for page in ("docker.md", "ray-up.md", "kuberay.md", "slurm.md"):
        text = (CLUSTER / page).read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE)[-3:] == [
            "To edit",
            "What it costs",
            "What we have not run",
        ], page


def test_nodes_that_do_not_come_are_named_with_their_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wait_for_nodes, "_POLL_INTERVAL_S", 0.01)
    seen = iter([0, 1, 2, 2])
    monkeypatch.setattr(wait_for_nodes, "_num_nodes", lambda address: next(seen))
    assert wait_for_nodes.main(["10.0.0.1:6379", "2"]) == 0
    monkeypatch.setattr(wait_for_nodes, "_num_nodes", lambda address: 1)
    assert wait_for_nodes.main(["10.0.0.1:6379", "2", "--timeout", "0.05"]) == 1
    assert capsys.readouterr().err == "1 of 2 nodes joined 10.0.0.1:6379, waited 0.05 s\n"
