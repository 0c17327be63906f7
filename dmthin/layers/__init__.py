"""Archives and directories in, trees inside a volume out; nothing here knows pools or stores."""
