"""Runs a real Kubernetes cluster on one Linux machine without Docker: `python -m devcluster --help`.

It uses the upstream programs, built from their Go modules: etcd, API server, controllers, scheduler, and for each
node a kubelet, a kube-proxy and a containerd. A node is a network namespace behind a bridge, so pods on two nodes
communicate over a network that does not reach beyond this machine. kwok adds simulated GPU nodes. The package needs
only the standard library, because it runs before the environment is installed. README.md compares it with kind.

    settings        paths, ports and addresses
    processes       long-running programs, each with a pid file and a log
    binaries        builds the programs
    pki             keys, certificates, kubeconfigs
    control_plane   etcd, API server, controllers, scheduler, DNS, registry
    nodes           network namespaces, containerd, kubelet, kube-proxy; power cuts
    simulated       kwok's nodes and the behaviour of their pods
    images          builds and serves container images
    kueue           runs Kueue
"""
