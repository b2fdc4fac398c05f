"""Checks of the trainer that need a GPU: `tests/gpu/run.sh`, see README.md. With `--cpu` they run without one."""
