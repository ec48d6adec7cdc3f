"""The programs that produce every figure in the README, and their recorded results."""
