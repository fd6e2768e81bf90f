"""SERL against other trainers on the same games: `python -m tools.bench peers`."""
