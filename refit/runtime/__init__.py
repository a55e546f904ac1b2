"""How a process runs: stages, commands, the warm process, the end of a parent, locks, progress. Changes no result."""
