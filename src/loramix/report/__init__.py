"""Pages and plots: plain data in, self-contained HTML and images out."""
