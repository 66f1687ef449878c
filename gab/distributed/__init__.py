"""The processes of a run: which they are, how they start, watch over one another, are warned and end."""
