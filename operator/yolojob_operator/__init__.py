"""The Kubernetes operator: watches YoloTrainingJobs and runs their pods. It does not import torch.

Layers, from top to bottom; each imports only those below it:

- `kopf_app`: kopf's handlers, the HTTP server, the supervisor.
- `control`: the reconciler and its components: queue, executor, leader election, metrics. Asynchronous; it decides
  nothing.
- `plan`: what a job needs, as a pure function of the observed state.
- `objects`: pure builders of the API objects that a plan creates.
- `kube`: the client of the API server, and plain types of its objects.
"""
