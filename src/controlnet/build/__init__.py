"""Data sets from prompts, URLs, indexes and folders: stages over rows, shards that are whole or absent."""
