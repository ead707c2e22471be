"""How files are written, read, hashed and kept free of secrets."""
