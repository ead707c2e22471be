"""What of a board is shown, whatever the format."""
