"""Tell normal from crime in clips read from shards, with 3D convolutions and attention over the frames."""
