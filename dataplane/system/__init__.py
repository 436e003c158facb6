"""The only rooms that touch the machine and the network. None imports another."""
