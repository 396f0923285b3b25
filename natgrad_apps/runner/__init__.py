"""What every runner shares: configurations, command line, run folder, checkpoints, progress, exit codes. It imports no application."""
