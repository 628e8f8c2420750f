"""One thin module a command: parse nothing, decide little, call the rooms below."""
