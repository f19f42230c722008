"""The run folder: results on disk, each file whole or absent."""
