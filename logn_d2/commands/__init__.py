"""The work of the commands; their arguments are in `logn_d2.cli`."""
