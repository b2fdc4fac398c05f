"""Public import path of the job: `from yolojob.job import YoloTrainingJob`. The code is in `yolojob.api.job`."""

from yolojob.api.job import YoloTrainingJob

__all__ = ["YoloTrainingJob"]
