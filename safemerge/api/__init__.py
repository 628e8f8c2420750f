"""What `import safemerge` offers, and the commands call; see `safemerge` for the names."""
