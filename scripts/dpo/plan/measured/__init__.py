"""What runs measured of themselves, and what their plans had said."""
