"""The fields of Kubernetes' and KubeRay's resources that `tools/cluster` uses, and their types.

A dictionary has these fields and no others, a list has one kind of item, a pattern is of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(m|[KMGT]i?)?")
_RESOURCES = {"cpu": _QUANTITY, "memory": _QUANTITY, "nvidia.com/gpu": re.compile(r"\d+")}
_LIMITS = {"requests": _RESOURCES, "limits": _RESOURCES}
_METADATA = {"name": _NAME}
_CONTAINER = {
    "name": _NAME,
    "image": str,
    "ports": [{"containerPort": int, "name": _NAME}],
    "env": [{"name": re.compile(r"[A-Z_][A-Z0-9_]*"), "value": str}],
    "resources": _LIMITS,
    "volumeMounts": [{"name": _NAME, "mountPath": re.compile("/.*")}],
}
_VOLUME = {
    "name": _NAME,
    "persistentVolumeClaim": {"claimName": _NAME},
    "emptyDir": {"medium": re.compile("Memory"), "sizeLimit": _QUANTITY},
}
_POD = {
    "spec": {
        "restartPolicy": re.compile("Always|OnFailure|Never"),
        "terminationGracePeriodSeconds": int,
        "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "fsGroup": int},
        "containers": [_CONTAINER],
        "volumes": [_VOLUME],
        "tolerations": [
            {
                "key": str,
                "operator": re.compile("Exists|Equal"),
                "effect": re.compile("NoSchedule|PreferNoSchedule|NoExecute"),
            }
        ],
    }
}
# What `ray start` is given, each as text.
_RAY_START = {"num-cpus": re.compile(r"\d+"), "dashboard-host": str}
_CLUSTER_SPEC = {
    "rayVersion": re.compile(r"\d+\.\d+\.\d+"),
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": re.compile("v1|v2"),
        "upscalingMode": re.compile("Default|Aggressive|Conservative"),
        "idleTimeoutSeconds": int,
        "resources": _LIMITS,
    },
    "headGroupSpec": {"rayStartParams": _RAY_START, "template": _POD},
    "workerGroupSpecs": [
        {
            "groupName": _NAME,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": _RAY_START,
            "template": _POD,
        }
    ],
}
_SPECS: dict[str, dict[str, Any]] = {
    "RayCluster": {"apiVersion": re.compile("ray.io/v1"), "spec": _CLUSTER_SPEC},
    "RayJob": {
        "apiVersion": re.compile("ray.io/v1"),
        "spec": {
            "entrypoint": str,
            "submissionMode": re.compile("K8sJobMode|HTTPMode|InteractiveMode|SidecarMode"),
            "shutdownAfterJobFinishes": bool,
            "ttlSecondsAfterFinished": int,
            "activeDeadlineSeconds": int,
            "backoffLimit": int,
            "submitterPodTemplate": _POD,
            "rayClusterSpec": _CLUSTER_SPEC,
        },
    },
    "PodMonitor": {
        "apiVersion": re.compile("monitoring.coreos.com/v1"),
        "spec": {
            "selector": {
                "matchExpressions": [
                    {"key": str, "operator": re.compile("In|NotIn|Exists|DoesNotExist"), "values": [str]}
                ]
            },
            "podMetricsEndpoints": [{"targetPort": int, "interval": re.compile(r"\d+s")}],
        },
    },
    "PersistentVolumeClaim": {
        "apiVersion": re.compile("v1"),
        "spec": {
            "accessModes": [re.compile("ReadWriteOnce|ReadOnlyMany|ReadWriteMany")],
            "storageClassName": str,
            "resources": _LIMITS | {"requests": {"storage": _QUANTITY}},
        },
    },
}


def faults(resource: dict[str, Any]) -> list[str]:
    """What Kubernetes would not take of ``resource``, each with its place."""
    kind = resource.get("kind", "")
    if kind not in _SPECS:
        return [f"kind: {kind!r} is not known"]
    schema = {"kind": str, "metadata": _METADATA} | _SPECS[kind]
    missing = [f"{name}: missing" for name in schema if name not in resource]
    return missing + list(_faults(resource, schema, ""))


def _faults(value: Any, schema: Any, place: str) -> Iterator[str]:
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            yield f"{place}: no mapping"
            return
        for name, inner in value.items():
            where = f"{place}.{name}".lstrip(".")
            if name in schema:
                yield from _faults(inner, schema[name], where)
            else:
                yield f"{where}: not known"
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{place}: no list"
            return
        for number, item in enumerate(value):
            yield from _faults(item, schema[0], f"{place}[{number}]")
    elif isinstance(schema, re.Pattern):
        if not isinstance(value, str) or not schema.fullmatch(value):
            yield f"{place}: {value!r} is not {schema.pattern}"
    elif type(value) is not schema:
        yield f"{place}: {value!r} is no {schema.__name__}"
