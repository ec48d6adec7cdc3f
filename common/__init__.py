"""Everything the three scripts share."""

import os

# GNU's OpenMP, which torch brings along, reads this when it is loaded: how often a thread that waits for the others
# looks for work before it sleeps. Its own 300,000 times slow two programs on the same cores several times over.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
