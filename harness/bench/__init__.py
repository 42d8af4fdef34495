"""How fast an evaluation is: against the machine's matrix-multiply roof, and against a path that works as the official code does."""
