"""Raw data: files, columns and splits."""
