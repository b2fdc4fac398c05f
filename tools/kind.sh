#!/usr/bin/env bash
# Prepares the cluster that KUBECONFIG points to (kind, minikube) for `make cluster`: the CRD, and four GPU nodes that
# kwok simulates. kwok runs on this machine; its process ID is in kwok.pid below. Needs kubectl and Go.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=tests
PATH=$(go env GOPATH)/bin:$PATH
folder=${TMPDIR:-/tmp}/yolojob-kind
mkdir -p "$folder"

# The same versions and the same nodes as in the project's own test cluster.
for tool in kwok kubeconform; do
  module=$(python3 -c "from devcluster.binaries import TOOLS; print(TOOLS['$tool'])")
  command -v $tool > /dev/null || go install "$module"
done
python3 -c 'from devcluster.simulated import STAGES; print(STAGES)' > "$folder/kwok.yaml"
python3 -c '
import json
from devcluster.simulated import gpu_node
print(json.dumps({"apiVersion": "v1", "kind": "List", "items": [gpu_node(i) for i in range(4)]}))
' > "$folder/nodes.json"

kubectl apply --filename manifests/crd.yaml
# The conditions of a new definition are null, on which a wait for a condition fails: wait for the accepted names first.
kubectl wait --for=jsonpath='{.status.acceptedNames.kind}'=YoloTrainingJob crd/yolotrainingjobs.yolojob.dev --timeout=30s
kubectl wait --for=condition=Established crd/yolotrainingjobs.yolojob.dev --timeout=30s
nohup kwok --kubeconfig="${KUBECONFIG:-$HOME/.kube/config}" --config="$folder/kwok.yaml" --manage-all-nodes=false \
  --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake --node-lease-duration-seconds=40 --cidr=10.80.0.0/16 \
  > "$folder/kwok.log" 2>&1 &
echo $! > "$folder/kwok.pid"
kubectl apply --filename "$folder/nodes.json"
kubectl wait --for=condition=Ready node --selector=type=kwok --timeout=60s
