"""Everything the three scripts share."""

import os

# How often a thread that waits for others looks for work before it sleeps: GNU's OpenMP reads it when torch is loaded
# (earlier than this package: no effect). Its own 300,000 times nearly halve what two programs do on the same cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
