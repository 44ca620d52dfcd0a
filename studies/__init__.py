"""Many runs of a command compared: their YAML, the runs, tables and figures."""
