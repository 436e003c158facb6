"""What people see: asks the daemon or decide/, and formats the answer."""
