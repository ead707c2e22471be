"""CSV, Markdown and LaTeX tables."""
