"""New ALFWorld games: real floor plans, the package's affordances and goals, our own furnishing."""
