"""How a process runs: stages, commands, the warm process, a parent's end, locks, progress. Changes no result."""
