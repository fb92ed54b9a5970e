"""What the card is made of."""
