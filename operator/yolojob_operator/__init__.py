"""The operator: watches YoloTrainingJobs and runs their pods. No torch here.

Four layers, each in a module: `facts` (what is seen), `plan` (what should be; pure), `cluster` (the API server),
`handlers` with `reconciler` (when). `pods` builds the objects that a plan wants, `conditions` and `endings` put it in words.
"""
