"""Runs the command line as `python -m yolojob.cli`."""

from yolojob.cli.main import main

main()
