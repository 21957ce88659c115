"""`python -m rabbit2docker` is the command `rabbit2docker`."""

from rabbit2docker.cli import main

main()
