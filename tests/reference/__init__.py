"""The obviously right twins: plain writings of the rules that the fast ones are compared with."""
