"""YoloTrainingJobs: models, CRD, manifests, estimates, client and command line. Depends on neither torch nor kopf."""

__version__ = "0.1.0"
