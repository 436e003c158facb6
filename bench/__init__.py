"""One file a question; `python -m bench NAME` answers it on this machine."""
