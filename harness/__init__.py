"""How a run happens: command line, engine, run folder, leaderboard."""
