"""Run maps: schedule tasks, collect outcomes, decode missing results, verify them, and build the report."""
