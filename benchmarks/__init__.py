"""The programs that produce every figure in the README, and their recorded results."""

import common  # noqa: F401  before torch, as in the scripts, for what it sets
