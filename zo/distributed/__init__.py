"""One run over several processes: who stands where, and what they say to one another."""
