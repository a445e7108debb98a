"""`python -m qgisd`."""

from qgisd.cli import main

main(prog_name="qgisd")
