"""How far MIR moves with images, texts, template and the number of samples."""
