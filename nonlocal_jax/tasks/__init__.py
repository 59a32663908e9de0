"""Tasks: one record for each kind of problem that networks are trained on."""
