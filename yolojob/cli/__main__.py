"""`python -m yolojob.cli` is the command `yolojob`."""

from yolojob.cli.main import main

main()
