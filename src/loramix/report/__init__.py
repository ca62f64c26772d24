"""What a run looks like: loss curves and one self-contained HTML page."""
