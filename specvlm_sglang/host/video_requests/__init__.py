"""What a request says of its videos: options, lists of frames, counts; and what is said back."""
