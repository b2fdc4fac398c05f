"""Simulates GPU nodes: kwok takes the part of their kubelets, so that a thousand pods use almost no resources.

A pod on such a node runs as soon as it is scheduled. With the annotation `devcluster/exit` it terminates with that exit code
after `devcluster/exit-after` (a duration, by default 1s), and `devcluster/message` becomes its termination message.
"""

from __future__ import annotations

import json

from devcluster.control_plane import kubectl
from devcluster.processes import inside, launch
from devcluster.settings import BIN, CONTROL_IP, INSIDE_KUBECONFIG, NETNS, SIMULATED_PODS, STATE

_CONTAINERS = """\
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        restartCount: 0
        ready: %s
        state: %s
      {{ end }}"""
_RUNNING = _CONTAINERS % ("true", "{running: {startedAt: {{ $now | Quote }}}}")
_ENDED = _CONTAINERS % (
    "false",
    "{terminated: {exitCode: {{ $code }}, reason: {{ if eq $code `0` }}Completed{{ else }}Error{{ end }}, "
    "message: {{ or (index $pod.metadata.annotations `devcluster/message`) `` | Quote }}, "
    "startedAt: {{ $pod.status.startTime | Quote }}, finishedAt: {{ $now | Quote }}}}",
)
STAGES = f"""\
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: node-is-ready}}
spec:
  resourceRef: {{apiGroup: v1, kind: Node}}
  selector:
    matchExpressions:
    - {{key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: NotIn, values: ["True"]}}
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}
      phase: Running
      addresses:
      - {{type: InternalIP, address: {{{{ NodeIP | Quote }}}}}}
      conditions:
      {{{{ range NodeConditions }}}}
      - type: {{{{ .type | Quote }}}}
        status: {{{{ .status | Quote }}}}
        reason: {{{{ .reason | Quote }}}}
        message: {{{{ .message | Quote }}}}
        lastHeartbeatTime: {{{{ $now | Quote }}}}
        lastTransitionTime: {{{{ $now | Quote }}}}
      {{{{ end }}}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-runs}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - {{key: .metadata.deletionTimestamp, operator: DoesNotExist}}
    - {{key: .status.phase, operator: In, values: [Pending]}}
    - {{key: .spec.nodeName, operator: Exists}}
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}
      phase: Running
      startTime: {{{{ $now | Quote }}}}
      podIP: {{{{ PodIPWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) | Quote }}}}
      conditions:
      - {{type: Initialized, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
      - {{type: ContainersReady, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
      - {{type: Ready, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
{_RUNNING}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-ends}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - {{key: .metadata.deletionTimestamp, operator: DoesNotExist}}
    - {{key: .status.phase, operator: In, values: [Running]}}
    - {{key: '.metadata.annotations["devcluster/exit"]', operator: Exists}}
  delay:
    durationMilliseconds: 1000
    durationFrom: {{expressionFrom: '.metadata.annotations["devcluster/exit-after"]'}}
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}{{{{ $pod := . }}}}{{{{ $code := index .metadata.annotations "devcluster/exit" }}}}
      phase: {{{{ if eq $code "0" }}}}Succeeded{{{{ else }}}}Failed{{{{ end }}}}
{_ENDED}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-is-deleted}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
    - {{key: .metadata.deletionTimestamp, operator: Exists}}
    # kwok deletes by name: a second request could delete the pod that has replaced the first one.
    - {{key: .metadata.deletionGracePeriodSeconds | tostring, operator: NotIn, values: ["0"]}}
  next: {{delete: true}}
"""


def gpu_node(i: int) -> dict[str, object]:
    """Returns a node of eight GPUs, with the usual taint: only pods that tolerate it are scheduled there."""
    size = {"cpu": "96", "memory": "1000Gi", "pods": "200", "nvidia.com/gpu": "8"}
    labels = {
        "type": "kwok",
        "kubernetes.io/hostname": f"gpu-{i}",
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": "p4d.24xlarge",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
        "topology.kubernetes.io/zone": f"zone-{i % 3}",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"gpu-{i}", "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
        "status": {"allocatable": size, "capacity": size},
    }


def start(count: int) -> None:
    """Starts kwok and creates its nodes."""
    (STATE / "kwok.yaml").write_text(STAGES)
    launch(
        "kwok",
        inside(
            NETNS,
            str(BIN / "kwok"),
            f"--kubeconfig={INSIDE_KUBECONFIG}",
            f"--config={STATE}/kwok.yaml",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            f"--cidr={SIMULATED_PODS}",
            f"--node-ip={CONTROL_IP}",
        ),
    )
    nodes = {"apiVersion": "v1", "kind": "List", "items": [gpu_node(i) for i in range(count)]}
    kubectl("apply", "-f", "-", input=json.dumps(nodes))
