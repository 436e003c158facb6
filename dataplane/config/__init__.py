"""What the operator wrote. Pure: no machine, no network."""
