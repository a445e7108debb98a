"""Ends the process, or tries to."""

import sys

sys.exit("not on this machine")
