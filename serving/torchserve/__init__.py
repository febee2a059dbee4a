"""TorchServe: the archive it loads, the handler it calls, and its start and stop."""
