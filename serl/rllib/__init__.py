"""What RLlib's users expect of an algorithm: setters, results, checkpoints."""
