"""What only the shipped experiments share."""
