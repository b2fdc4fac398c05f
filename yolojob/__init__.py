"""What a YoloTrainingJob *is*: models, CRD, manifests, command line, local runner. No torch and no kopf in here."""

__version__ = "0.1.0"
