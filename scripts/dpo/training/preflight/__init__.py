"""What is checked before step 1, so that a wrong run ends in its first minute."""
