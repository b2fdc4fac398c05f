"""A real Kubernetes on one Linux machine, for people without Docker: `python -m devcluster --help`.

Upstream's own binaries, built from their Go modules: etcd, API server, controllers, scheduler, and for each node a kubelet and
kube-proxy with a containerd of its own. A node is a network namespace behind a bridge, so two pods on two nodes really talk
over a network; nothing of it reaches beyond this machine. kwok adds simulated GPU nodes. Standard library only: it runs
before anything is installed.

    settings        where everything lies, and the addresses
    processes       long-running programs with a pid file and a log each
    binaries        what is built, and how
    pki             keys, certificates, kubeconfigs
    control_plane   etcd, API server, controllers, scheduler, DNS, registry
    nodes           namespaces, containerd, kubelet, kube-proxy; pulling a node's plug
    simulated       kwok's nodes, and how their pods behave
    images          building and serving container images without Docker
"""
