"""What people send: video files and where they come from, before any model sees them."""
