"""What GitHub says, and what it hears."""
